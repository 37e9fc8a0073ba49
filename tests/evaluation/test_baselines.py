"""Each baseline gives the answer that its name promises."""

from howto.evaluation.baselines import LABELS, baseline_answers, nearest_rows
from tests.support.answers import row

TRAIN = [row(0, "Fern.", intent="repot a fern"), row(1, "Violin.", intent="tune a violin"), row(2, "Loaf.")]


def test_each_baseline_is_what_its_name_says() -> None:
    rows = [row(0, intent="tune a cello"), row(1, intent="water it", context="A fern is dry.")]
    plain, with_context = baseline_answers(rows, TRAIN, seed=0)
    assert plain.keys() == LABELS.keys()
    assert plain["echo_intent"] == plain["echo_context"] == "tune a cello"
    assert with_context["echo_intent"] == "water it" and with_context["echo_context"] == "A fern is dry."
    assert plain["nearest_answer"] == "Violin." and with_context["nearest_answer"] == "Fern."


def test_random_answers_are_training_answers_and_depend_on_the_seed() -> None:
    rows = [row(n) for n in range(60)]
    first, again, other = (
        [answers["random_answer"] for answers in baseline_answers(rows, TRAIN, seed=seed)] for seed in (0, 0, 1)
    )
    assert set(first) == {"Fern.", "Violin.", "Loaf."}
    assert first == again != other


def test_a_rare_word_weighs_more_than_a_common_one_and_without_a_common_word_the_first_row_is_nearest() -> None:
    among = ["the the fern", "the the the the violin", "the loaf", "the soup"]
    assert nearest_rows(["the soup", "the the the fern", "zzz", ""], among) == [3, 0, 0, 0]
    many = [f"word{n} here" for n in range(700)]  # more than a batch
    assert nearest_rows(many, many) == list(range(700))
