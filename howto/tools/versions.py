"""Read the answers of versions of the project: of this folder, or of a git revision or DVC experiment."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from howto.core.dvc_lock import LockedStage, read_lock
from howto.core.errors import UserError, one_line
from howto.core.paths import LOCK, PARAMS, PREDICTIONS, PREPARED, TEST, TRAINING
from howto.core.schema import Row, read_rows
from howto.evaluation.predictions import MODELS, Answers, check_against_lock, read_predictions

ANSWERS = [PREDICTIONS / f"{model}.jsonl" for model in MODELS]
HERE = "this folder"


@dataclass(frozen=True)
class Version:
    """One version's test rows, answers, and what the answers were made with."""

    name: str
    commit: str | None  # None: this folder
    rows: list[Row]
    answers: dict[str, Answers]  # of each model
    params: dict[str, Any]  # params.yaml
    hashes: dict[str, str]  # of each file and folder that its stages read and wrote, by path
    validation_loss: float | None


def versions(names: str) -> list[Version]:
    """Return the versions in a list such as `.,r8,r16`, in which `.` is this folder.

    Raises as `this_folder` and `revision`.
    """
    return [this_folder() if name == "." else revision(name) for name in names.split(",")]


def this_folder() -> Version:
    """Return the version in the project's folder.

    Raise UserError if it has no answers, or not those that its dvc.lock and params.yaml call for.
    """
    version = _read(HERE, None, Path())
    for path in ANSWERS:
        check_against_lock(path, LOCK, {}, PARAMS)
    _check_that_it_ran(version.params, Path())
    return version


def revision(name: str) -> Version:
    """Return the version of a commit, branch, tag or DVC experiment, from DVC's cache or else its remote.

    Raise UserError if there is no such revision, it has no answers, or DVC cannot get them.
    """
    with TemporaryDirectory() as folder, _opened(name) as (commit, files):
        for path in (PARAMS, LOCK, TRAINING):
            if files.exists(str(path)):
                _copy(files, path, Path(folder), name)
        recorded = _hashes(Path(folder) / LOCK)
        for path in (TEST, *ANSWERS):
            if str(path) not in recorded and str(path.parent) not in recorded:
                raise UserError(f"{name}: no {path}: the commit has no run. Compare with a revision that has one.")
            _copy(files, path, Path(folder), name)
        try:
            version = _read(name if commit[:7] in name else f"{name} ({commit[:7]})", commit, Path(folder))
            _check_that_it_ran(version.params, Path(folder))
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}/", f"{name}:")) from None
        return version


@contextmanager
def _opened(name: str) -> Iterator[tuple[str, Any]]:
    """The commit of a revision, and its files as DVC has them, by their paths in the project's folder."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import NoSCM, RevError

    with ExitStack() as stack:
        try:
            # Today's remote and cache are used: the revision may have had others, or none, and at paths relative to it.
            with Repo() as here:
                today = {section: here.config[section] for section in ("core", "remote", "cache")}
            repo = stack.enter_context(Repo(config=today))
            if isinstance(repo.scm, NoSCM):
                raise DvcException("core.no_scm is set in .dvc/config")
            # Unlike `Repo(rev=...)`, this finds the project also where git's root is above it.
            commit = stack.enter_context(repo.switch(name or "''"))
        except (RevError, AttributeError) as error:  # the latter for a tree, such as HEAD:
            if "ambiguous" in str(error):
                raise UserError(f"{name}: several experiments have this name. Give a hash.") from None
            raise UserError(
                f"{name or 'an empty name'}: no such revision. `git log --all` and `dvc exp list --all-commits` list "
                "them."
            ) from None
        except DvcException as error:
            raise UserError(f"{name}: {one_line(error)}. Run from the git repository with its .dvc folder.") from None
        yield commit, repo.dvcfs


def _copy(files: Any, path: Path, folder: Path, name: str) -> None:
    """Raises UserError if DVC cannot get a file that it records."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    try:
        files.get_file(str(path), str(folder / path))
    except Exception as error:  # of DVC, of its storage, or of the network
        raise UserError(
            f"{name}: {path} is neither in DVC's cache nor in its remote ({one_line(error)}). Run `dvc fetch "
            f"--all-commits {PREPARED} {' '.join(map(str, ANSWERS))}`, or `dvc exp pull` for an experiment."
        ) from None


def _read(name: str, commit: str | None, folder: Path) -> Version:
    rows = read_rows(folder / TEST, Row)
    answers = read_predictions(folder / PREDICTIONS, rows, folder / TEST)
    try:
        loss = _yaml(folder / TRAINING).get("validation_loss")  # JSON is YAML
    except FileNotFoundError:
        loss = None
    return Version(name, commit, rows, answers, _yaml(folder / PARAMS), _hashes(folder / LOCK), loss)


def _check_that_it_ran(params: dict[str, Any], folder: Path) -> None:
    """Check in dvc.lock that the answers were made with these params.

    Raise UserError if a stage ran with other params, or read a file that has been made again since.
    """
    stages = _stages(folder / LOCK)
    made = {path: md5 for stage in stages.values() for path, md5 in stage.outs.items()}
    to_do = "Run `dvc repro`, or compare a version that was run."
    for name, stage in stages.items():
        for key, value in stage.params.get(str(PARAMS), {}).items():
            now: Any = params
            for part in key.split("."):
                now = now.get(part) if isinstance(now, dict) else None
            other_profile = key.startswith("profiles.") and key.split(".")[1] != params["profile"]
            if now != value or other_profile:
                what = f"profile: {params['profile']}" if other_profile else key
                raise UserError(f"{folder / PARAMS} ({what}): changed since {name} ran. {to_do}")
        for path, md5 in stage.deps.items():
            if made.get(path, md5) != md5:
                raise UserError(f"{folder / LOCK}: {path} was made again after {name} read it. {to_do}")


def _hashes(lock: Path) -> dict[str, str]:
    """Return the hash of each input and output of the stages behind the answers, code included, by path."""
    return {path: md5 for stage in _stages(lock).values() for path, md5 in {**stage.deps, **stage.outs}.items()}


def _stages(lock: Path) -> dict[str, LockedStage]:
    """Return the stages behind the answers that dvc.lock records; none if there is no dvc.lock."""
    stages = read_lock(lock) if lock.exists() else {}
    return {name: stage for name, stage in stages.items() if name.partition("@")[0] not in ("general", "evaluate")}


def _yaml(path: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, and UserError for what is no mapping."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, YAMLError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged. Restore it from git.")
    return values
