"""Fixtures and helpers for all tests: a tiny model, a finished run, and stages run as a user runs them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

import howto  # noqa: F401  # before a test imports NumPy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

os.environ["GOMP_SPINCOUNT"] = "1000"  # test processes share the cores, so waiting threads must not spin for long
os.environ["DVC_NO_ANALYTICS"] = "1"  # also in projects that a test creates with `dvc init`
# Background jobs of a shell ignore SIGINT, and under nohup SIGHUP. Processes that tests start must not inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
pytest_plugins = ["tests.support.fetching"]
ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data"

# Files that take a minute or more. They start first, so that no process is left alone with one at the end.
LONGEST = (
    "portability",
    "compiled_layers",
    "worker",
    "group",
    "infer_killed",
    "killed",
    "older_transformers",
    "fsdp",
    "places",
    "pipeline",
    "architectures",
    "two_hosts",
    "gpu_check",
    "remotes",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    first = {f"test_{name}": at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real Dolly rows and TinyLlama's real tokenizer, on machines that have it."""
    if not REAL.is_dir():
        pytest.skip("the real data is not beside the project on this machine")
    return REAL


@pytest.fixture(scope="module")
def tinyllama(real_data: Path) -> PreTrainedTokenizerBase:
    """Return TinyLlama's real tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_data / "tinyllama")


def smaller(text: str, tiny: Path) -> str:
    """Return params.yaml with its default profile on the model and rows in `tiny`, so that a stage takes seconds."""
    package, sha256 = (
        re.search(pattern, text) for pattern in (r"(?<=source: )package:\w\S+", r"(?<=weights_sha256: )\w+")
    )
    assert package and sha256
    for old, new in {
        "threads: 2 ": "threads: 1 ",  # in so small a model two threads mostly wait for each other
        f"source: {package[0]}   # str; see above\n      weights_sha256: {sha256[0]}   # str; of the .gguf file\n": (
            f"source: {tiny}/model\n"
        ),
        "source: ./data/howto\n": f"source: {tiny}/rows.jsonl\n",
        "validation: 60 ": "validation: 12 ",
        "test: 120\n": "test: 12\n",
        "steps: 80                 #": "epochs: 1                 #",
        "learning_rate: 3.0e-3     #": "learning_rate: 1.0e-2     #",
        "      batch_size: 4  ": "      batch_size: 8  ",
        "micro_batch_size: 4  ": "micro_batch_size: 8  ",
        "resamples: 10000": "resamples: 200",
        "text: data/general/text.jsonl ": "text: null ",  # tests/general has tests of its own
        "chat: data/chat/questions.jsonl ": "chat: null ",
        "max_new_tokens: 256  ": "max_new_tokens: 48  ",
        re.search(r" +no_repeat_ngram_size: 5 .*\n +max_new_tokens: 224 .*\n", text)[0]: "",  # type: ignore[index]
    }.items():
        assert text.count(old) == 1, f"params.yaml has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny chat model (model/) and 120 rows (rows.jsonl). Read-only."""

    def make(folder: Path) -> None:
        from tests.support.tiny import write_model, write_rows

        write_model(folder / "model")
        write_rows(folder / "rows.jsonl")

    return made_once(tmp_path_factory, "tiny", make)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the default profile's base model. Read-only."""

    def make(folder: Path) -> None:
        from howto.params import read_params
        from howto.sources.config import Model
        from howto.sources.gguf import convert_gguf
        from howto.sources.installed_package import package_file

        path, package = package_file(read_params(ROOT / "params.yaml").section(Model).source)
        convert_gguf(path, folder, "float32", package)

    return made_once(tmp_path_factory, "smollm2", make)


@pytest.fixture(scope="session")
def small_params(tiny: Path) -> str:
    """Return this project's params.yaml for the tiny model."""
    return smaller((ROOT / "params.yaml").read_text(encoding="utf-8"), tiny)


SETTINGS = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "COLUMNS": "120",
    **{f"GIT_{role}_{part}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")},
}
ENVIRONMENT = {**os.environ, **SETTINGS}


def call(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command, such as DVC's, in `folder`, with more environment variables."""
    environment = {**os.environ, **SETTINGS, **variables}
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def run(folder: Path, *command: str) -> str:
    """Run a command that must succeed; return what it prints."""
    done = call(folder, *command)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run_stage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m <arguments>` in `folder` with this project's modules."""
    return call(folder, sys.executable, "-m", *arguments, PYTHONPATH=str(ROOT))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that one pytest-xdist process makes and all share. Read-only."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name / "folder", root / name / "done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(root / name, ignore_errors=True)
            folder.mkdir(parents=True)
            make(folder)
            done.touch()
    return folder


# In one process, because imports take most of the time. Those that use torch set it up in the same way.
SEVERAL_STAGES = """
import importlib, sys
for stage in sys.argv[1:]:
    name, _, model = stage.partition("@")
    sys.argv = [name, *(["--stage", model] if model else [])]
    importlib.import_module(f"stages.{name}").main()
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_params: str) -> Path:
    """Return a folder with a finished tiny run. Read-only; `workplace` is a copy."""

    def make(folder: Path) -> None:
        (folder / "params.yaml").write_text(small_params, encoding="utf-8")
        for stages in (
            "fetch_model fetch_data prepare",
            "train infer@base infer@adapter",
            "general@base general@adapter evaluate",
        ):
            done = call(folder, sys.executable, "-c", SEVERAL_STAGES, *stages.split(), PYTHONPATH=str(ROOT))
            assert done.returncode == 0, f"{stages}: {done.stderr}"

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture
def workplace(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "workplace"))


def stages_run(output: str) -> list[str]:
    """Return the stages that DVC ran, by its output. Those from its cache are not among them."""
    return re.findall(r"Running stage '([^']+)'", output)


def copy_code(folder: Path) -> None:
    """Copy this project's files that git tracks or would track, except dvc.lock and those that are there."""
    for name in run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if name != "dvc.lock" and not (folder / name).exists() and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


@pytest.fixture(scope="session")
def known(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return this project with the tiny run committed to DVC and git. Read-only; `project` is a copy."""

    def make(folder: Path) -> None:
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        copy_code(folder)
        for command in ("git init -q", "dvc commit -q -f", "git add -A", "git commit -qm run"):
            run(folder, *command.split())

    return made_once(tmp_path_factory, "known", make)


@pytest.fixture
def project(known: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may change. DVC finds every stage up to date."""
    return Path(shutil.copytree(known, tmp_path / "project", symlinks=True))


@pytest.fixture(scope="session")
def by_two(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a longer run, trained by two processes of one thread each. Read-only."""

    def make(folder: Path) -> None:
        from tests.support.in_process import edit_params

        shutil.copytree(finished, folder, dirs_exist_ok=True)
        edit_params(folder, "processes: 1 ", "processes: 2 ")
        edit_params(folder, "epochs: 1 ", "epochs: 8 ")
        edit_params(folder, "validation_answers: null ", "validation_answers: 5 ")
        edit_params(folder, "micro_batch_size: 8 ", "micro_batch_size: 2 ")
        train = folder / "data/prepared/train.jsonl"
        lines = train.read_text(encoding="utf-8").splitlines(keepends=True)
        train.write_text("".join(lines[:85]), encoding="utf-8")  # the last step of an epoch has 5 rows: 3 and 2
        done = run_stage(folder, "stages.train")
        assert done.returncode == 0 and done.stderr == "", done.stderr

    return made_once(tmp_path_factory, "by_two", make)
