"""Check that scores can see the words of the references. Otherwise right answers would score 0 without a message."""

import re
from collections.abc import Iterable

from unicode_segmentation_rs import unicode_words

from howto.core.errors import UserError
from howto.core.paths import TEST
from howto.core.schema import Row

WARN_FROM = 0.01  # of all words; English texts have a few foreign names
SHOWN_IDS = 3
_SEEN = re.compile("[a-z0-9]")  # by `rouge_score`, in lower case


def check_references(rows: Iterable[Row], tokenizer: str) -> list[str]:
    """Return warnings about references whose words the tokenizer (`evaluate.tokenizer`) does not see.

    Words are those of UAX 29, without the numbers of a text that has other words: by these alone, any two lists of four
    steps would be equal. `rouge_score` does not see all of a word that has other characters than a to z, 0 to 9 and
    apostrophes; `unicode` sees every word.

    Raise UserError if that is most of the words, or if most references have no word at all.
    """
    count = words = hidden = 0
    example = ""
    wordless: list[str] = []
    for row in rows:
        count += 1
        is_seen = False
        for text in (row.output, *row.references):
            found = unicode_words(text.lower().replace("\u2019", "'"))
            found = [word for word in found if not (word.isascii() and word.isdigit())] or found
            words += len(found)
            if tokenizer == "unicode" or text.isascii():
                is_seen = is_seen or bool(found)
                continue
            unseen = [word for word in found if not word.isascii()]
            hidden += len(unseen)
            example = example or next(iter(unseen), "")
            is_seen = is_seen or any(map(_SEEN.search, found))
        if not is_seen:
            wordless.append(row.id)
    share = hidden / max(1, words)
    if share > 0.5:
        raise UserError(
            f"params.yaml: evaluate.tokenizer: rouge_score sees a to z and 0 to 9 alone, but {share:.0%} of the words "
            f"in the references have other letters, such as {example!r}. Set it to unicode."
        )
    ids = ", ".join(wordless[:SHOWN_IDS]) + (", ..." if len(wordless) > SHOWN_IDS else "")
    without = f"{len(wordless)} of {count} references have no word that evaluate.tokenizer {tokenizer} sees, rows {ids}"
    if len(wordless) > count / 2:
        raise UserError(
            f"{TEST}: {without}: no score could be right. Correct the rows, or evaluate.tokenizer in params.yaml."
        )
    warnings = [f"{without}: no answer to them is scored right"] if wordless else []
    if share >= WARN_FROM:
        warnings.append(
            f"{share:.1%} of the words in the references have letters that evaluate.tokenizer rouge_score does not "
            f"see, such as {example!r}; unicode sees them"
        )
    return warnings
