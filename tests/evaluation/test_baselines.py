"""What those score who know nothing of a row."""

from __future__ import annotations

from howto.core.schema import Row, input_of
from howto.evaluation.baselines import NAMES, floor_answers, nearest_rows


def row(intent: str, context: str = "", output: str = "x") -> Row:
    return Row(
        id=intent, category="c", instruction="Do.", input=input_of(intent, context), context=context, output=output
    )


TRAIN = [
    row("repot a fern", output="Fern."),
    row("tune a violin", output="Violin."),
    row("bake a loaf", output="Loaf."),
]


def test_each_floor_is_what_its_name_says() -> None:
    (plain, with_context) = floor_answers([row("tune a cello"), row("water it", "A fern is dry.")], TRAIN, seed=0)
    assert tuple(plain) == NAMES
    assert plain["echo_intent"] == plain["echo_context"] == "tune a cello"
    assert with_context["echo_intent"] == "water it" and with_context["echo_context"] == "A fern is dry."
    assert plain["nearest_answer"] == "Violin." and with_context["nearest_answer"] == "Fern."


def test_random_answers_are_training_answers_and_hang_on_the_seed() -> None:
    rows = [row(str(n)) for n in range(60)]
    found = [answers["random_answer"] for answers in floor_answers(rows, TRAIN, seed=0)]
    assert set(found) == {"Fern.", "Violin.", "Loaf."}
    assert found == [answers["random_answer"] for answers in floor_answers(rows, TRAIN, seed=0)]
    assert found != [answers["random_answer"] for answers in floor_answers(rows, TRAIN, seed=1)]


def test_a_rare_word_weighs_more_than_a_common_one() -> None:
    among = ["the the fern", "the the the the violin", "the loaf", "the soup"]
    assert nearest_rows(["the the the fern"], among) == [0]


def test_where_no_word_is_shared_it_is_the_first() -> None:
    assert nearest_rows(["zzz", "", "soup"], ["fern", "soup"]) == [0, 0, 1]
    assert nearest_rows(["fern"], ["?", "!"]) == [0]


def test_many_texts_are_compared_in_parts() -> None:
    among = [f"word{n} here" for n in range(700)]
    assert nearest_rows([f"word{n}" for n in range(700)], among) == list(range(700))
