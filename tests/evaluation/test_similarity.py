"""Similarity in meaning, by a model that params name; without the package or the model, one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from howto.core.errors import UserError
from howto.evaluation.similarity import similarities
from tests.conftest import ROOT, run_stage


@pytest.fixture(scope="module")
def encoder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that embeds a text as the mean of random vectors of its tokens."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer.from_file(str(finished / "models/base/tokenizer.json"))
    weights = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 64)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(str(folder))
    return folder


def test_the_same_text_is_at_1_and_a_like_one_nearer_than_another(encoder: Path) -> None:
    same, like, other = similarities(
        str(encoder),
        [
            ("Water the fern.", "Water the fern."),
            ("Water the fern.", "Water the big fern."),
            ("Water the fern.", "Tune a violin."),
        ],
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert same > like > other


def test_evaluate_adds_it_if_a_model_is_named(workplace: Path, encoder: Path) -> None:
    path = workplace / "params.yaml"
    text = path.read_text(encoding="utf-8")
    assert "embedding_model: null" in text
    path.write_text(text.replace("embedding_model: null", f"embedding_model: {encoder}"), encoding="utf-8")
    done = run_stage(workplace, "stages.evaluate")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((workplace / "metrics/metrics.json").read_text(encoding="utf-8"))
    difference = metrics["adapter"]["similarity"] - metrics["base"]["similarity"]
    assert metrics["delta"]["similarity"] == pytest.approx(difference, abs=2e-6)
    assert -1 <= metrics["base"]["similarity"] <= 1


def test_a_model_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"evaluate.embedding_model: /no/such/folder cannot be loaded .*name a folder"):
        similarities("/no/such/folder", [("a", "b")])


def test_without_the_package_one_line_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['sentence_transformers'] = None\n"
        "from howto.evaluation.similarity import similarities\nfrom howto.core.errors import UserError\n"
        "try:\n    similarities('m', [('a', 'b')])\nexcept UserError as stop:\n    print(stop)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "pip install sentence-transformers" in done.stdout
