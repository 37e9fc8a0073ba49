"""In every script a text has the words that a reader counts, and scores 1 against itself and little against others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from howto.evaluation.baselines import nearest_rows
from howto.evaluation.metrics import measure
from howto.evaluation.rouge import KINDS, Rouge
from howto.evaluation.scoring import score
from howto.evaluation.tokenizers import TOKENIZERS
from tests.support.answers import CONFIG, prediction, row

UNICODE = TOKENIZERS["unicode"]
WORDS = {
    "russian": ("1. Откройте «Настройки».\n2. Ждите.", "1|откройте|настройки|2|ждите"),
    "greek": ("Ο ΔΡΌΜΟΣ, ο δρόμος", "ο|δρόμοσ|ο|δρόμοσ"),  # both forms of sigma are one
    "chinese": ("1. 打开电脑，连接Wi-Fi。", "1|打|开|电|脑|连|接|wi|fi"),
    "japanese": ("1. アプリを開く。スーパー", "1|ア|プ|リ|を|開|く|ス|ー|パ|ー"),
    "thai": ("เปิดที่นี่ ก็ได้", "เ|ปิ|ด|ที่|นี่|ก็|ไ|ด้"),
    "lao": ("ເປີດປະຕູ", "ເ|ປີ|ດ|ປ|ະ|ຕູ"),
    "khmer": ("បើកទឹក", "បើ|ក|ទឹ|ក"),
    "myanmar": ("ရေဖွင့်", "ရေ|ဖွ|င့်"),
    "arabic": ("١. افتح الباب، ثم اِنْتَظِر.", "١|افتح|الباب|ثم|اِنْتَظِر"),
    "hebrew": ('צה"ל ושלום.', 'צה"ל|ושלום'),
    "hindi": ("1. दरवाज़ा खोलें। हिन्दी", "1|दरवाज़ा|खोलें|हिन्दी"),
    "tamil": ("கதவைத் திறக்கவும்.", "கதவைத்|திறக்கவும்"),
    "korean": ("앱을 여세요. 끝!", "앱을|여세요|끝"),
    "vietnamese": ("Đổ nước vào nồi.", "đổ|nước|vào|nồi"),
    "french": ("L’été, un CAFÉ : 3,5 €", "l'été|un|café|3,5"),
    "german": ("STRASSE, Straße, Öl", "strasse|strasse|öl"),
    "turkish": ("Işığı aç, ağacı sula.", "işığı|aç|ağacı|sula"),
    "english": ("Don't touch: ½ cup (3.5 oz) ＦＩＮＥ ﬁne 1️⃣ 🌱!", "don't|touch|1⁄2|cup|3.5|oz|fine|fine|1"),
}


@pytest.mark.parametrize("language", WORDS)
def test_the_words_of_a_text_are_those_of_its_script(language: str) -> None:
    text, words = WORDS[language]
    assert UNICODE.words_of(text) == words.split("|")


@pytest.mark.parametrize("stemmer", [False, True])
@pytest.mark.parametrize("language", WORDS)
def test_a_text_scores_1_against_itself_and_0_against_any_other_language(language: str, stemmer: bool) -> None:
    rouge = Rouge(use_stemmer=stemmer, tokenizer="unicode")
    own = rouge.tokens(WORDS[language][0])
    assert {kind: found.fmeasure for kind, found in rouge.score([own], own).items()} == dict.fromkeys(KINDS, 1.0)
    other = rouge.tokens("Zzz qqq." if language != "english" else "水")
    assert rouge.score([own], other)["rougeL"].fmeasure == 0


def rouge_l(reference: str, answer: str, *, stemmer: bool = False) -> float:
    rouge = Rouge(use_stemmer=stemmer, tokenizer="unicode")
    return rouge.rouge_l(rouge.tokens(reference), rouge.tokens(answer)).fmeasure


def test_another_list_of_as_many_chinese_steps_scores_its_few_common_characters() -> None:
    reference, other = "1. 打开门\n2. 关上窗\n3. 烧水\n4. 喝茶", "1. 买菜\n2. 洗手\n3. 切肉\n4. 炒饭"
    google = Rouge(use_stemmer=False)
    assert google.rouge_l(google.tokens(reference), google.tokens(other)).fmeasure == 1.0  # it sees the numbers alone
    # In common are four numbers, of 4 + 10 and 4 + 8 words: 2 * 4 / (14 + 12).
    assert rouge_l(reference, other) == pytest.approx(8 / 26)
    # "打开窗" has 打 开 of 打开门, and 窗 of another step comes too late: 2 * 2 / (3 + 3).
    assert rouge_l("打开门", "打开窗") == pytest.approx(2 / 3)


def test_an_accent_counts_and_its_encoding_does_not() -> None:
    assert rouge_l("café", "cafe\u0301") == 1 and rouge_l("café", "cafe") == rouge_l("café", "caf") == 0
    assert rouge_l("カ\u3099ラス", "ｶﾞﾗｽ") == 1 and rouge_l("می\u200cخواهم", "میخواهم") == 1


def test_the_stemmer_changes_words_of_ascii_letters_alone() -> None:
    assert rouge_l("watering plants", "watered plant", stemmer=True) == 1
    assert rouge_l("watering plants", "watered plant") == 0
    assert rouge_l("cafés don't", "café dont", stemmer=True) == 0
    rouge = Rouge(use_stemmer=True, tokenizer="unicode")
    assert rouge.tokens("Watering, cafés, don't, книги").words == ("water", "cafés", "don't", "книги")


class OurWords:
    """The tokenizer as Google's package takes it."""

    def tokenize(self, text: str) -> list[str]:
        return UNICODE.words_of(text)


GOOGLE, OURS = rouge_scorer.RougeScorer(KINDS, tokenizer=OurWords()), Rouge(use_stemmer=False, tokenizer="unicode")
PIECES = st.sampled_from([*(text for text, _ in WORDS.values()), "水", "の", "ア", "ก", "é", "a", " ", "\n", "1. "])
TEXTS = st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=20)


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS)
def test_scores_are_those_of_googles_package_with_the_same_words(reference: str, answer: str) -> None:
    assert OURS.score([OURS.tokens(reference)], OURS.tokens(answer)) == GOOGLE.score(reference, answer)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_words_hold_all_letters_and_digits_and_no_blanks_and_are_folded(text: str) -> None:
    words = UNICODE.words_of(text)
    assert all(not any(character.isspace() for character in word) for word in words)
    kept = [c for word in words for c in word if c.isalpha() or c.isdigit()]
    assert kept == [c for c in UNICODE.fold(text) if c.isalpha() or c.isdigit()]
    assert UNICODE.words_of("\n".join(words)) == words


def test_every_number_of_a_run_counts_the_words_of_its_tokenizer() -> None:
    rows = [row(0, "打开门窗", intent="怎么办呢"), row(1, "关上水管", intent="如何是好")]
    answers = {
        "base": [[prediction(0, "打开门窗打开门窗")], [prediction(1, "水")]],
        "adapter": [[prediction(0, "打开门窗")], [prediction(1, "如何是好")]],
    }
    nearest = {"nearest": "打开门"}
    scores = score(rows, answers, [nearest, nearest], use_stemmer=True, tokenizer="unicode")
    found = measure(rows, answers, scores, CONFIG.model_copy(update={"tokenizer": "unicode"}))
    assert scores.reference_words.tolist() == [4, 4]
    assert found["base"]["length_ratio"] == (8 + 1) / (4 + 4)
    assert found["base"]["repeated"] == pytest.approx(1 / 5)  # 打开门窗 开门窗打 门窗打开 窗打开门 打开门窗
    assert found["adapter"]["copied"] == 0.5  # the second answer is its prompt
    assert found["baselines"]["nearest"] == pytest.approx((6 / 7 + 0) / 2, abs=1e-6)
    assert found["ceiling"] == {"reference": 1} and found["unicode_words"] == 1


def test_the_nearest_row_is_found_by_characters_where_a_script_has_no_spaces() -> None:
    among = ["如何修理自行车", "如何煮米饭", "怎样浇花"]
    assert nearest_rows(["煮饭怎么做", "给花浇水"], among, "unicode") == [1, 2]
