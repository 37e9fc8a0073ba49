"""An answer's steps are matched with the reference's, and what is missing, moved or superfluous is counted."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from howto.core.errors import UserError
from howto.core.schema import Row
from howto.evaluation import embeddings
from howto.evaluation.embeddings import encode, similarities
from howto.evaluation.metrics import measure_difference, measure_model
from howto.evaluation.plots import MIN_ROWS
from howto.evaluation.results import side_by_side
from howto.evaluation.rouge import Rouge
from howto.evaluation.scoring import score
from howto.evaluation.significance import bootstrap_interval
from howto.evaluation.steps import StepScores, kendall_tau, match_by_words, match_steps, split_steps
from tests.support.answers import CONFIG, prediction, row

STEPS = ["Open the window.", "Fill a bucket.", "Add some soap.", "Rinse with clean water.", "Dry it in the sun."]
WORDLLAMA = "package:wordllama"


def numbered(steps: list[str]) -> str:
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))


def scored(answer: str, reference: str = numbered(STEPS), *others: str) -> StepScores:
    """What an answer scores, by words."""
    matcher = match_by_words(Rouge(use_stemmer=True), CONFIG.step_threshold)
    found = matcher.score_row(row(0, reference, references=others), {"model": [answer]})
    assert found is not None
    return found["model"][0]


def measures(answer: str, reference: str = numbered(STEPS)) -> tuple[Any, Any, Any]:
    found = scored(answer, reference)
    return found.coverage, found.order, found.superfluous


def test_a_step_is_a_numbered_line_and_the_lines_that_belong_to_it() -> None:
    text = "You need 2 things:\n1. Cut it\nin half.\n\n   Or in four.\n 2) **Wash** it.\n\n\nGood luck!\n3. Dry it."
    assert split_steps(text) == [(2, "Cut it\nin half.\n\n   Or in four."), (6, "**Wash** it."), (10, "Dry it.")]
    assert split_steps("1、打开门\n2、关窗") == [(1, "打开门"), (2, "关窗")]
    assert split_steps("It takes 2. Then go.\n- Stop.") == split_steps("") == []


@pytest.mark.parametrize(
    ("places", "tau"),
    [([0, 1, 2], 1), ([5, 3, 1], -1), ([1, 0, 2], 1 / 3), ([0, 3, 1, 2], 1 / 3), ([0, 1], 1), ([7], None), ([], None)],
)
def test_order_is_kendalls_tau(places: list[int], tau: float | None) -> None:
    assert kendall_tau(places) == tau
    if tau is not None:
        assert tau == pytest.approx(stats.kendalltau(range(len(places)), places).statistic)


def test_the_assignment_has_the_greatest_total_of_similarities_above_the_threshold() -> None:
    assert match_steps(np.array([[0.9, 0.8], [0.8, 0.1]]), 0.3) == [(0, 1), (1, 0)]  # not 0.9 first
    assert match_steps(np.array([[0.3, 0.2], [0.29, 0.2]]), 0.3) == [(0, 0)]
    assert match_steps(np.array([[0.2], [0.1]]), 0.3) == []
    rng = np.random.default_rng(0)
    for trial in range(50):
        similarity = rng.random((4, 3 + trial % 3))
        found = match_steps(similarity, 0.5)
        assert len({one for one, _ in found}) == len({other for _, other in found}) == len(found)
        kept = np.pad(np.where(similarity >= 0.5, similarity, 0), ((0, 0), (0, 4)))  # some columns stand for no match
        every = (
            sum(kept[one, other] for one, other in enumerate(way)) for way in permutations(range(kept.shape[1]), 4)
        )
        assert sum(similarity[pair] for pair in found) == pytest.approx(max(every))


def test_of_equal_steps_the_one_in_its_place_is_matched() -> None:
    for twice, superfluous in (([*STEPS, STEPS[0]], 5), ([STEPS[4], *STEPS], 0)):
        assert measures(numbered(twice)) == (1, 1, pytest.approx(1 / 6))
        assert scored(numbered(twice)).matches[superfluous] == (superfluous + 1, None)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_edits_of_the_steps_score_what_they_change(count: int) -> None:
    steps, reference = STEPS[:count], numbered(STEPS[:count])
    assert measures(reference, reference) == (1, 1, 0)
    assert measures(numbered(steps[::-1]), reference) == (1, -1, 0)
    for at in range(count - 1):
        swapped = [*steps[:at], steps[at + 1], steps[at], *steps[at + 2 :]]
        assert measures(numbered(swapped), reference) == (1, pytest.approx(1 - 4 / (count * (count - 1))), 0)
    for at in range(count):
        missing = steps[:at] + steps[at + 1 :]
        assert measures(numbered(missing), reference) == ((count - 1) / count, 1 if count > 2 else None, 0)
        added = [*steps[:at], "Call your grandmother.", *steps[at:]]
        assert measures(numbered(added), reference) == (1, 1, pytest.approx(1 / (count + 1)))


def test_the_number_of_a_step_and_text_around_the_list_do_not_count() -> None:
    assert measures(f"Do this:\n\n{numbered(STEPS)}\n\nFill a bucket. Good luck!") == (1, 1, 0)
    assert scored("9. Add some soap.").matches == ((1, 3),)
    assert measures("1. Stop.\n2. Go.", "1. Go.\n2. Stop.") == (1, -1, 0)


@pytest.mark.parametrize("answer", ["", "Open the window. Fill a bucket.", "- Open the window.\n- Fill a bucket."])
def test_an_answer_without_numbered_steps_covers_nothing_and_has_no_order_and_no_superfluous_step(answer: str) -> None:
    assert measures(answer) == (0, None, None)


def test_a_step_that_matches_none_is_superfluous() -> None:
    assert measures("1. Call your bank.\n2. Pay.") == (0, None, 1)
    assert measures("1. Open the window.\n2. Call your bank.") == (1 / 5, None, 1 / 2)


def test_of_several_references_the_list_that_fits_best_counts_as_a_whole() -> None:
    short, prose = numbered(["Go home.", "Sleep well."]), "Add some soap."
    found = scored("1. Sleep well.\n2. Go home.", numbered(STEPS), prose, short)
    assert (found.coverage, found.order, found.superfluous, found.reference) == (1, -1, 0, 2)
    assert scored(numbered(STEPS), numbered(STEPS), numbered(STEPS)).reference == 0
    rouge = Rouge(use_stemmer=True)
    assert match_by_words(rouge, 0.3).score_row(row(0, prose, references=(short,)), {"model": [short]}) is None


def measured(rows: list[Row], **texts: list[list[str]]) -> tuple[dict[str, Any], ...]:
    """The numbers of both models and their difference, and the rows, of answers [rows][seeds]."""
    answers = {
        model: [[prediction(n, text, seed) for seed, text in enumerate(of_row)] for n, of_row in enumerate(of_model)]
        for model, of_model in texts.items()
    }
    scores = score(rows, answers, [{}] * len(rows), use_stemmer=True, steps=CONFIG)
    models = [measure_model(scores, model, rows, answers[model], CONFIG) for model in answers]
    delta = measure_difference(scores, "base", "adapter", CONFIG)
    return *models, delta, {"rows": side_by_side(rows, answers, scores)}


def test_seeds_are_averaged_and_rows_without_a_value_are_left_out_of_order_but_never_of_coverage() -> None:
    whole, back = numbered(STEPS), numbered(STEPS[::-1])
    rows = [row(0, whole), row(1, whole), row(2, "No list.")]
    base, adapter, delta, results = measured(
        rows, base=[["", whole], ["", ""], ["", ""]], adapter=[[back, back], [whole, back], [whole, ""]]
    )
    assert [base[f"step_{name}"] for name in ("coverage", "order", "superfluous")] == [1 / 4, 1, 0]
    assert [base[f"step_{name}_rows"] for name in ("coverage", "order", "superfluous")] == [2, 1, 1]
    assert (adapter["step_coverage"], adapter["step_order"], adapter["step_order_rows"]) == (1, -1 / 2, 2)
    assert (delta["step_coverage"], delta["step_order"], delta["step_order_rows"]) == (3 / 4, -2, 1)
    assert not any(name.startswith("step_") and name.endswith("low") for name in (*base, *adapter, *delta))
    first, _, third = (of_row.get("steps") for of_row in results["rows"])
    assert first["base"] == {"coverage": 0, "order": None, "superfluous": None, "matches": ()}
    assert first["adapter"]["matches"] == ((1, 5), (2, 4), (3, 3), (4, 2), (5, 1)) and third is None


def test_from_ten_rows_each_measure_has_the_interval_of_its_mean() -> None:
    rows = [row(n, numbered(STEPS)) for n in range(MIN_ROWS)]
    texts = [[numbered(STEPS[: 1 + n % 5])] for n in range(MIN_ROWS)]
    base, adapter, delta, _ = measured(rows, base=[[""]] * MIN_ROWS, adapter=texts)
    coverage = [(1 + n % 5) / 5 for n in range(MIN_ROWS)]
    expected = bootstrap_interval(coverage, confidence=0.95, resamples=CONFIG.resamples, seed=0)
    for found in (adapter, delta):
        assert found["step_coverage"] == pytest.approx(3 / 5)
        assert (found["step_coverage_low"], found["step_coverage_high"]) == pytest.approx(expected, abs=1e-6)
    assert (base["step_coverage"], base["step_coverage_low"]) == (0, 0) and "step_order" not in base
    assert adapter["step_order_rows"] == 8 and "step_order_low" not in adapter and "step_order" not in delta


def test_an_embedding_model_matches_steps_that_say_the_same_in_other_words() -> None:
    reference = "1. Wash the jacket in cold water.\n2. Rinse the dishes with cold water."
    text = "1. Clean plates and cups under a chilly tap.\n2. Launder your coat at low temperature.\n3. Call a friend."
    answer = [[prediction(0, text)]]
    config = CONFIG.model_copy(update={"embedding_model": WORDLLAMA})
    found = [
        score([row(0, reference)], {"model": answer}, [{}], use_stemmer=True, steps=steps).steps["model"].first[0]
        for steps in (CONFIG, config)
    ]
    assert found == [
        (0, None, 1, 0, ((1, None), (2, None), (3, None))),
        (1, -1, pytest.approx(1 / 3), 0, ((1, 2), (2, 1), (3, None))),
    ]
    no_list = score([row(0, "x")], {"model": [[prediction(0, "")]]}, [{}], use_stemmer=True, steps=config)
    assert no_list.steps["model"].first == [None]


def test_static_vectors_are_of_length_1_and_do_not_depend_on_case_or_on_the_other_texts() -> None:
    vectors = encode(WORDLLAMA, ["Water the fern.", "", "Tune a violin."])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 1], abs=1e-6)
    np.testing.assert_array_equal(vectors[:1], encode(WORDLLAMA, ["WATER the fern."]))
    same, alike, other = similarities(
        WORDLLAMA, [("Water it.", text) for text in ("Water it.", "Give it water.", "Go.")]
    )
    assert pytest.approx(1, abs=1e-6) == same > alike > other


def test_a_package_that_is_unknown_or_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"evaluate.embedding_model: expected package:wordllama, got 'package:numpy'"):
        encode("package:numpy", ["a"])
    monkeypatch.setattr(embeddings, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"wordllama is not installed. Run `pip install wordllama`"):
        encode(WORDLLAMA, ["a"])
