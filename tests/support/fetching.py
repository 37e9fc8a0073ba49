"""A hub with a model and a data set, and a folder in which stages fetch: what the tests of fetching share."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.conftest import ROOT, call, run_stage
from tests.support.hub import Hub, serve
from tests.support.in_process import Done, run_stage_here

MODEL, DATA = "someone/small-chat", "someone/how-to"
OUTPUTS = {"model": "models", "data": "data"}


def weights(size: int, seed: int = 0) -> bytes:
    """Return safetensors of about `size` bytes, among them embeddings for the tokens of `PARTS`."""
    other = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return bytes(save({"model.embed_tokens.weight": np.zeros((len(TOKENS), 2), np.float32), "other": other}))


def rows(count: int) -> bytes:
    """Return JSONL."""
    lines = [json.dumps({"instruction": f"How {n}?", "response": "1. So."}) for n in range(count)]
    return "".join(line + "\n" for line in lines).encode()


def listing(files: Mapping[str, bytes]) -> str:
    """Return the sha256 of what `sha256sum` prints for several files."""
    text = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


TOKENS = {"<unk>": 0, "a": 1, "</s>": 2}
CONFIG = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(TOKENS), "hidden_size": 2},
    **{"intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1},
}
WEIGHTS, OLDER_WEIGHTS = weights(1000), weights(500)
PARTS = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": Tokenizer(WordLevel(TOKENS, unk_token="<unk>")).to_str().encode(),
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}',
    "tokenizer.model": b"sentencepiece",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache-2.0",
}
# What is not fetched: pickles, code, weights in another format, and what transformers does not load.
OTHERS = {
    "pytorch_model.bin": b"pickled",
    "training_args.pt": b"pickled",
    "modeling.py": b"print('remote code')",
    "onnx/model.safetensors": b"x",
    "original/config.json": b"x",
    "consolidated.safetensors": b"x",
    "README.md": b"# A model",
}
SHARDS = {"data/train-0.parquet": b"PAR1 zero", "data/train-1.parquet": b"PAR1 one"}
ROWS = {"rows.jsonl": rows(9), "old [2].json": b"[]", "more/part.csv.gz": b"instruction,response\n", **SHARDS}
OLD_ROWS = {"old.json": b"[]"}
ABOUT = {"README.md": b"# Rows", ".gitattributes": b"", "dataset_infos.json": b"{}", "data/.hidden.jsonl": b"{}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a model and a data set, with an empty cache, in an environment without other settings."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("HF_"):
            monkeypatch.delenv(name)
    repositories = {
        f"models/{MODEL}": {"model.safetensors": WEIGHTS, **PARTS, **OTHERS},
        f"datasets/{DATA}": {**ROWS, **ABOUT},
    }
    older = {f"models/{MODEL}": {"model.safetensors": OLDER_WEIGHTS, **PARTS, **OTHERS}, f"datasets/{DATA}": OLD_ROWS}
    with serve(Hub(repositories, older)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
        yield served


class Place:
    """A folder with a params.yaml, in which stages fetch."""

    def __init__(self, folder: Path, params: str) -> None:
        self.folder, self._params = folder, params

    def write(self, *, model: str | None = None, data: str | None = None) -> None:
        """Write params.yaml with another `model` and `data` of the default profile (YAML flow mappings)."""
        text = self._params
        start = text.index("\n    model:\n")
        middle = text.index("\n    data:\n", start)
        end = text.index("\n    prepare:\n", middle)
        model_text = f"\n    model: {model}" if model else text[start:middle]
        data_text = f"\n    data: {data}" if data else text[middle:end]
        (self.folder / "params.yaml").write_text(text[:start] + model_text + data_text + text[end:], encoding="utf-8")

    def fetch(self, what: str, source: str) -> Done:
        """Run the stage that fetches the "model" or the "data". Libraries read the hub's address at their import."""
        self.write(**{what: source})
        if "HF_ENDPOINT" not in os.environ:
            return run_stage_here(f"fetch_{what}", self.folder)
        done = run_stage(self.folder, f"stages.fetch_{what}")
        return Done(done.returncode, done.stdout, done.stderr)

    def succeeds(self, what: str, source: str) -> str:
        """Run the stage, check that it is quiet on stderr, and return what it printed."""
        done = self.fetch(what, source)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    def fails(self, what: str, source: str, *phrases: str) -> str:
        """Run the stage, check that it ends with one line and leaves nothing, and return the line."""
        done = self.fetch(what, source)
        assert done.returncode == 1 and not done.stdout, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert all(phrase in done.stderr for phrase in phrases), done.stderr
        output = self.folder / OUTPUTS[what]
        assert not output.exists() or not list(output.iterdir())
        return done.stderr

    def files(self, folder: str) -> dict[str, bytes]:
        """Return the files in `folder`, by their names relative to it."""
        root = self.folder / folder
        assert not any(path.is_symlink() for path in root.rglob("*"))
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, small_params: str) -> Place:
    return Place(tmp_path, small_params)


def run_by_anyone(folder: Path, stage: str) -> subprocess.CompletedProcess[str]:
    """Run a stage without root's right to read and write everything."""
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    return call(folder, *rights, sys.executable, "-m", stage, PYTHONPATH=str(ROOT))


def lay(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
