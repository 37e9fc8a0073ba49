"""What the fine-tuning cost: cases by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from howto.evaluation.general import chat_rows, cost_sentence, is_correct, is_list, measure_general
from howto.general.inputs import Question
from howto.general.results import ChatAnswer, GeneralResults, ScoredPassage
from tests.support.answers import CONFIG


def answered(text: str, *accepted: str) -> ChatAnswer:
    return ChatAnswer(question=Question(question="q", accepted=list(accepted)), text=text, stop="eos")


def passages(*of: tuple[int, float]) -> list[ScoredPassage]:
    return [
        ScoredPassage(name=str(number), tokens=tokens, log_probability=mean) for number, (tokens, mean) in enumerate(of)
    ]


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        ("The answer is 4.", "4", True),
        ("It is 14.", "4", False),
        ("It is 4.5, or 1,4", "4", False),
        ("4, of course", "4", True),
        ("1. Add.\n2. Add.\n3. Add.\n4. Stop.", "4", False),
        ("1. Add.\n2. The sum is 4.", "4", True),
        ("PARIS!", "Paris", True),
        ("Parisian", "Paris", False),
        ("(carbon\ndioxide)", "carbon dioxide", True),
        ("She doesn\u2019t like it", "doesn't like", True),
        ("Buenos Días", "buenos días", True),
        ("Au", "gold", False),
        ("", "x", False),
    ],
)
def test_an_answer_is_right_if_it_has_an_accepted_string_as_whole_words_in_any_case(
    text: str, accepted: str, right: bool
) -> None:
    assert is_correct(answered(text, "no such word", accepted)) is right


def test_a_list_has_two_numbered_lines_or_more() -> None:
    lists = ["1. Go.\n2. Stop", "Here:\n\n1) Go.\n2) Stop."]
    others = ["1 + 1 = 2\n2 + 2 = 4", "1. Paris", "- Go.\n- Stop.", ""]
    assert [is_list(answered(text)) for text in (*lists, *others)] == [True, True, False, False, False, False]


def test_a_case_by_hand() -> None:
    base = GeneralResults(
        passages=passages((10, -1.0), (30, -2.0)),
        answers=[answered("It is Paris.", "Paris"), answered("7", "7"), answered("Hello!")],
    )
    adapter = GeneralResults(
        passages=passages((10, -1.5), (30, -2.1)),
        answers=[answered("1. Go to Paris.\n2. Look.", "Paris"), answered("1. Count.\n2. Add.", "7"), answered("Hi.")],
    )
    found = measure_general({"base": base, "adapter": adapter}, CONFIG)
    general, delta = found["general"], found["general"].pop("delta")
    assert general == {
        "passages": 2,
        "tokens": 40,
        "base": {"perplexity": pytest.approx(math.exp((10 * 1.0 + 30 * 2.0) / 40), abs=1e-4)},
        "adapter": {"perplexity": pytest.approx(math.exp((10 * 1.5 + 30 * 2.1) / 40), abs=1e-4)},
    }
    assert delta["perplexity_change"] == pytest.approx(math.exp((10 * 0.5 + 30 * 0.1) / 40) - 1, abs=1e-6)
    assert found["chat"] == {
        "questions": 3,
        "checkable": 2,
        "base": {"correct": 1, "numbered": 0},
        "adapter": {"correct": 0.5, "numbered": pytest.approx(2 / 3, abs=1e-6)},
    }
    found["general"]["delta"] = delta
    sentence = cost_sentence(found)
    assert sentence.startswith("On general text, perplexity is 5.8 before and 7.0 after (+22.1%, interval [")
    assert sentence.endswith(
        "Of 2 plain questions, 2 get an answer with the right word before and 1 after. "
        "Of 3 answers, 0 are numbered lists before and 2 after."
    )
    rows = chat_rows({"base": base, "adapter": adapter})
    ticks = [(row.get("base_correct"), row.get("adapter_correct")) for row in rows]
    assert ticks == [(True, True), (True, False), (None, None)]


def test_the_interval_is_that_of_the_ratio_of_sums_over_resampled_passages() -> None:
    chance = np.random.default_rng(0)
    tokens, gains = chance.integers(50, 400, 40), chance.normal(-0.05, 0.05, 40)
    old = passages(*((int(count), -2.0) for count in tokens))
    new = passages(*((int(count), -2.0 + gain) for count, gain in zip(tokens, gains, strict=True)))
    delta = measure_general({"base": GeneralResults(passages=old), "adapter": GeneralResults(passages=new)}, CONFIG)
    found = [delta["general"]["delta"][f"perplexity_change{end}"] for end in ("_low", "", "_high")]
    assert found[0] < found[1] < found[2]
    ratio = stats.bootstrap(
        (tokens * gains, tokens),
        lambda of, by, axis: of.sum(axis=axis) / by.sum(axis=axis),
        paired=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert [found[0], found[2]] == pytest.approx([math.exp(-ratio.high) - 1, math.exp(-ratio.low) - 1], abs=3e-3)


def test_what_was_not_measured_is_left_out_of_numbers_and_sentence() -> None:
    nothing = GeneralResults()
    assert measure_general({"base": nothing, "adapter": nothing}, CONFIG) == {} and cost_sentence({}) == ""
    talk = GeneralResults(answers=[answered("Hello!")])
    found = measure_general({"base": talk, "adapter": talk}, CONFIG)
    assert found == {"chat": {"questions": 1, "checkable": 0, "base": {"numbered": 0}, "adapter": {"numbered": 0}}}
    assert cost_sentence(found) == "Of 1 answers, 0 are numbered lists before and 0 after."
