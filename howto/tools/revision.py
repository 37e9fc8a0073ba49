"""The answers of one version of the project: of the working tree, or of a git revision or DVC experiment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from howto.core.dvc_lock import LockedStage, read_lock
from howto.core.errors import UserError
from howto.core.schema import Prediction, Row, read_rows
from howto.evaluation.metrics import MODELS
from howto.evaluation.predictions import check_against_lock, read_predictions

TEST = Path("data/prepared/test.jsonl")
PREDICTIONS = {model: Path(f"data/predictions/{model}.jsonl") for model in MODELS}
MADE = (TEST, *PREDICTIONS.values())  # what DVC has; git has the rest
HERE = "this version"
FETCHED = ("data/prepared", *map(str, PREDICTIONS.values()))
PARAMS, LOCK, TRAINED = Path("params.yaml"), Path("dvc.lock"), Path("metrics/train.json")


@dataclass(frozen=True)
class Version:
    """What one version has to say for itself."""

    name: str
    commit: str | None  # None: the working tree
    rows: list[Row]
    predictions: dict[str, list[list[Prediction]]]  # of each model, [rows][seeds]
    params: dict[str, Any]  # params.yaml
    inputs: dict[str, str]  # the hash of what each of its stages read and wrote, by path
    validation_loss: float | None


def working_tree() -> Version:
    """What lies in the project's folder.

    Raises:
        UserError: it has no predictions, or not those that its dvc.lock and params.yaml call for.
    """
    version = _read(HERE, None, Path())
    profile = version.params["profile"]
    used = {"infer": version.params["infer"], f"profiles.{profile}.infer": version.params["profiles"][profile]["infer"]}
    for path in PREDICTIONS.values():
        check_against_lock(path, LOCK, used, PARAMS)
    _check_that_it_ran(version.params, Path())
    return version


def revision(name: str) -> Version:
    """What a commit, branch, tag or DVC experiment has, from DVC's cache or else its remote.

    Raises:
        UserError: there is no such revision, it has no predictions, or DVC cannot get them.
    """
    with TemporaryDirectory() as folder, _opened(name) as files:
        commit = str(files.repo.get_rev())
        for path in (PARAMS, LOCK, TRAINED):
            _copy_if_there(files, path, Path(folder))
        known = _hashes(Path(folder) / LOCK)
        for path in MADE:
            if str(path) not in known and str(path.parent) not in known:
                raise UserError(
                    f"{name}: it has no {path}: committed without a run; compare with a revision that has one"
                )
            _copy(files, path, Path(folder), name)
        try:
            version = _read(name if commit[:7] in name else f"{name} ({commit[:7]})", commit, Path(folder))
            _check_that_it_ran(version.params, Path(folder))
        except UserError as stop:
            raise UserError(str(stop).replace(f"{folder}/", f"{name}:")) from None
        return version


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    """The files of a revision, as DVC has them."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import RevError

    try:
        # The remote is today's: that of the revision may have been another, or none.
        files = DVCFileSystem(".", rev=name or "''", remote=Repo().config["core"].get("remote"))
        repo = files.repo  # which is opened only now
    except RevError as error:
        said = "an experiment of several commits has this name; give its hash"
        if "ambiguous" not in str(error):
            said = "no such revision here; `git log --all` and `dvc exp list --all-commits` name those that are"
        raise UserError(f"{name or 'an empty name'}: {said}") from None
    except DvcException as error:
        raise UserError(
            f"{name}: {_first_line(error)}; comparing wants the git repository with its DVC folder"
        ) from None
    with repo:
        yield files


def _copy_if_there(files: Any, path: Path, folder: Path) -> None:
    try:
        content = files.read_bytes(str(path))
    except FileNotFoundError:
        return
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)


def _copy(files: Any, path: Path, folder: Path, name: str) -> None:
    """Raises UserError if DVC cannot get what it knows."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    try:
        files.get_file(str(path), str(folder / path))
    except Exception as error:  # of DVC, of its storage, or of the network
        raise UserError(
            f"{name}: {path} is not in DVC's cache, nor to be had from its remote ({_first_line(error)}); bring it "
            f"with `dvc fetch --all-commits {' '.join(FETCHED)}`, or, of an experiment, with `dvc exp pull`"
        ) from None


def _read(name: str, commit: str | None, folder: Path) -> Version:
    rows = read_rows(folder / TEST, Row)
    predictions = {model: read_predictions(folder / path, rows, folder / TEST) for model, path in PREDICTIONS.items()}
    params = _yaml(folder / PARAMS)
    try:
        loss = _yaml(folder / TRAINED).get("validation_loss")  # JSON is YAML
    except FileNotFoundError:
        loss = None
    return Version(name, commit, rows, predictions, params, _hashes(folder / LOCK), loss)


def _check_that_it_ran(params: dict[str, Any], folder: Path) -> None:
    """See that the answers are those of these params, as far as dvc.lock tells.

    Raises:
        UserError: a stage behind them ran with others, or read what has been made anew since.
    """
    stages = _stages(folder / LOCK)
    made = {path: md5 for stage in stages.values() for path, md5 in stage.outs.items()}
    to_do = "run `dvc repro`, or compare a version that was run"
    for name, stage in stages.items():
        for key, value in stage.params.get(str(PARAMS), {}).items():
            now: Any = params
            for part in key.split("."):
                now = now.get(part) if isinstance(now, dict) else None
            of_another = key.startswith("profiles.") and key.split(".")[1] != params["profile"]
            if now != value or of_another:
                what = f"profile: {params['profile']}" if of_another else key
                raise UserError(
                    f"{folder / PARAMS} ({what}): the answers were made with another value ({name}); {to_do}"
                )
        for path, md5 in stage.deps.items():
            if made.get(path, md5) != md5:
                raise UserError(f"{folder / LOCK}: {path} was made anew since {name} read it; {to_do}")


def _hashes(lock: Path) -> dict[str, str]:
    """Return the hash of each input and output of the stages before `evaluate`, code included, by path."""
    return {path: md5 for stage in _stages(lock).values() for path, md5 in {**stage.deps, **stage.outs}.items()}


def _stages(lock: Path) -> dict[str, LockedStage]:
    """Return the stages before `evaluate` that dvc.lock records; an empty dict if there is no dvc.lock."""
    return {name: stage for name, stage in read_lock(lock).items() if name != "evaluate"} if lock.exists() else {}


def _yaml(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, and UserError for what is no mapping."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, YAMLError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged; take it from git again")
    return values


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def capital(name: str) -> str:
    """A version's name at the beginning of a sentence: git's own names stay as they are."""
    return name.capitalize() if name == HERE else name
