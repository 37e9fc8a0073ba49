"""What an answer scores beside ROUGE: repetition and copies, by hand, and similarity in meaning."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from howto.core.errors import UserError
from howto.evaluation.embeddings import similarities
from howto.evaluation.scoring import PARALLEL_FROM, copied_share, repeated_share, score
from stages.evaluate import main as evaluate
from tests.support.answers import CONFIG, prediction, row
from tests.support.in_process import edit_params, run_here


def test_repeated_4_grams_are_those_that_occurred_earlier() -> None:  # a word is a letter here
    assert repeated_share("abcdef") == 0
    assert repeated_share("aaaaaa") == pytest.approx(2 / 3)  # three runs of four, one of them new
    assert repeated_share("abcdabcd") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repeated_share("abc") is None


def test_copied_4_grams_are_those_of_the_prompt() -> None:
    assert copied_share("abcde", "xabcdy") == 1 / 2  # abcd is there, bcde is not
    assert copied_share("abcd", "abc") == 0
    assert copied_share("ab", "ab") is None


def test_several_processes_score_many_rows_to_the_same_numbers() -> None:
    rows = [row(n, f"1. step {n}\n2. of many") for n in range(PARALLEL_FROM // 3 + 1)]
    answers = {
        "a": [[prediction(n, f"1. step {n}")] for n in range(len(rows))],
        "b": [[prediction(n, "of many"), prediction(n, "many")] for n in range(len(rows))],
    }
    many = score(rows, answers, [{"echo": "many"}] * len(rows), use_stemmer=True, steps=CONFIG)
    first = {model: of_model[:10] for model, of_model in answers.items()}
    few = score(rows[:10], first, [{"echo": "many"}] * 10, use_stemmer=True, steps=CONFIG)
    assert len(many.ceiling) == len(rows) and many.models["b"].rouge_l.shape == (len(rows), 2)
    for model in ("a", "b"):
        np.testing.assert_array_equal(many.models[model].rouge[:10], few.models[model].rouge)
        assert [*many.steps[model].first[:10]] == few.steps[model].first
    assert (many.steps["a"].values["coverage"] == 1 / 2).all() and (many.steps["b"].values["coverage"] == 0).all()
    np.testing.assert_array_equal(many.baselines["echo"][:10], few.baselines["echo"])


@pytest.fixture(scope="module")
def encoder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that embeds a text as the mean of random vectors of its tokens."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer.from_file(str(finished / "models/base/tokenizer.json"))
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 64)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(str(folder))
    return folder


def test_a_model_that_params_name_adds_the_similarity_in_meaning(workplace: Path, encoder: Path) -> None:
    fern = "Water the fern."
    pairs = [(fern, fern), (fern, "Water the big fern."), (fern, "Tune a violin.")]
    same, alike, other = similarities(str(encoder), pairs)
    assert pytest.approx(1, abs=1e-5) == same > alike > other
    edit_params(workplace, "embedding_model: null", f"embedding_model: {encoder}")
    assert run_here(evaluate, workplace).returncode == 0
    evaluation = json.loads((workplace / "metrics/evaluation.json").read_text(encoding="utf-8"))
    base, adapter, delta = (evaluation[part]["similarity"] for part in ("base", "adapter", "delta"))
    assert -1 <= base <= 1 and delta == pytest.approx(adapter - base, abs=2e-6)


def test_a_missing_embedding_model_or_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"evaluate.embedding_model: /no/such/folder cannot be loaded"):
        similarities("/no/such/folder", [("a", "b")])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        similarities("m", [("a", "b")])
