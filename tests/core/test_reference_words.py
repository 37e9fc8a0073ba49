"""References whose words a tokenizer does not see are reported with their share, or stop the run."""

import pytest

from howto.core.errors import UserError
from howto.core.reference_words import check_references
from howto.core.schema import Row
from tests.support.answers import row

ENGLISH = "1. Boil the water.\n2. Don’t touch it, it’s hot."


def rows(*references: str) -> list[Row]:
    return [row(number, text) for number, text in enumerate(references)]


@pytest.mark.parametrize(
    ("text", "share", "example"),
    [
        ("1. Откройте OK.\n2. Ждите.\n3. Всё.", "75%", "откройте"),
        ("1. 打开电脑\n2. 连接 Wi", "86%", "打"),
        ("Ανοίξτε την πόρτα.", "100%", "ανοίξτε"),
        ("افتح الباب", "100%", "افتح"),
        ("दरवाज़ा खोलें", "100%", "दरवाज़ा"),
        ("문을 여세요", "100%", "문을"),
        ("ドアを開ける", "100%", "ドア"),
        ("เปิดประตู", "100%", "เ"),
        ("Đổ nước vào nồi.", "100%", "đổ"),
    ],
)
def test_references_in_another_script_stop_the_run_unless_the_tokenizer_sees_it(
    text: str, share: str, example: str
) -> None:
    with pytest.raises(UserError, match=rf"^params.yaml: evaluate.tokenizer: .*{share} .*'{example}'.*unicode\.$"):
        check_references(rows(text), "rouge_score")
    assert check_references(rows(text), "unicode") == []


def test_a_few_words_with_accents_are_a_warning_with_their_share_and_english_is_none() -> None:
    (warning,) = check_references(rows("Buvez un café au lait."), "rouge_score")
    assert warning.startswith("20.0% of the words") and "'café'" in warning and "evaluate.tokenizer" in warning
    assert check_references(rows("Buvez un café au lait."), "unicode") == []
    assert check_references(rows(*[ENGLISH] * 20, f"{ENGLISH} Café!"), "rouge_score") == []  # less than 1 in 100


@pytest.mark.parametrize("tokenizer", ["rouge_score", "unicode"])
def test_references_without_a_word_are_counted_and_stop_the_run_if_they_are_most(tokenizer: str) -> None:
    (warning,) = check_references(rows(ENGLISH, ENGLISH, "🌱 ...", "?"), tokenizer)
    assert warning.startswith("2 of 4 references have no word") and "sees, rows 2, 3:" in warning
    with pytest.raises(UserError, match="2 of 3 references have no word"):
        check_references(rows(ENGLISH, "🌱", ""), tokenizer)


def test_one_row_in_another_script_is_named_and_a_second_reference_that_can_be_scored_is_enough() -> None:
    long = [ENGLISH] * 200
    (warning,) = check_references(rows(*long, "1. 水\n2. 火"), "rouge_score")
    assert warning.startswith("1 of 201 references have no word that evaluate.tokenizer rouge_score sees, rows 200:")
    more = [row(200, "水", references=("water",)), row(201, "1. 2. 3.")]
    assert check_references([*rows(*long), *more], "rouge_score") == []
