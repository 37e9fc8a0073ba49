"""What can be known of a run before it is made: the model's shape and the rows' tokens, each with where it was found.

Looked up in this order: what was told on the command line, what earlier stages left on disk (if dvc.lock says that the
active profile made it), what can be computed from params.yaml, what is published.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from howto.costs import Rows
from howto.hub_cache import cached_file
from howto.params.data import Data, EmbeddedData, OutsideData, RowSource
from howto.params.file import Params
from howto.params.infer import Infer, ProfileInfer
from howto.params.model import EmbeddedModel, Model
from howto.params.prepare import Prepare
from howto.params.train import Train
from howto.shapes import Shape, embedded_shape, names, published, read_config, shape_of
from howto.shards import local_shards
from howto.stop import Stop

BASE, RAW, PREPARED = Path("models/base"), Path("data/raw/rows"), Path("data/prepared")
PREDICTIONS = Path("data/predictions")
LOCK, METRICS = Path("dvc.lock"), Path("metrics")

# Of rows whose tokens nobody has counted. Fitted on Dolly's rows with TinyLlama's tokenizer and on the embedded ones;
# benchmarks/estimate.py says how well.
TEMPLATE = 40  # tokens of the chat format and of the fixed instruction
TOKENS_PER_BYTE = 0.26  # of intent, context and response
RESPONSE = 0.48  # share of a row's tokens
NAMES = 105  # bytes of a raw row that are names of columns and punctuation
KEPT = 0.97  # of the rows, by prepare


@dataclass(frozen=True)
class Told:
    """What the command line says, in place of what would be looked up."""

    config: str | None = None
    rows: int | None = None
    tokens_per_row: float | None = None


@dataclass
class Known:
    """What is known, and how."""

    shape: Shape
    raw_rows: int
    raw_bytes: float
    train: Rows
    validation: Rows
    test: Rows
    longest: float  # row of train, tokens
    new: dict[str, float]  # tokens of an answer of each model, on average
    how: dict[str, str] = field(default_factory=dict)


def find_out(params: Params, told: Told) -> Known:
    """All of it.

    Raises:
        Stop: the shape, or the number of rows, cannot be known yet; the message says how to tell it.
    """
    lock = read_lock()
    how: dict[str, str] = {}
    shape = _shape(params, told, lock, how)
    raw_rows, raw_bytes, per_row, response = _raw(params, told, lock, how)
    shared = params.section(Train)
    longest = float(min(shared.max_length, shape.context))
    counts = _split(params, raw_rows)
    counted = _counted(params, told, lock)
    if counted:
        counts, per_row, response, longest = counted
        how["rows"], how["tokens"] = "counted in data/prepared and metrics/train.json", ""
    else:
        per_row, response = _cut(per_row, response, longest)
    decoding = params.section(ProfileInfer).decoding(params.section(Infer))
    new = {model: float(decoding.max_new_tokens) for model in ("base", "adapter")}
    new["adapter"] = min(new["adapter"], response)
    how["answers"] = (
        f"the base model's as long as may be, {decoding.max_new_tokens} tokens; the adapter's as the references"
    )
    if all(made_by(lock, f"infer@{model}", params) for model in new) and not told.rows:
        lengths = {model: _mean_answer(PREDICTIONS / f"{model}.jsonl") for model in new}
        if all(lengths.values()):
            new, how["answers"] = {model: lengths[model] or 0 for model in new}, "counted in data/predictions"
    train, validation, test = (Rows(count, per_row, response) for count in counts)
    return Known(shape, raw_rows, raw_bytes, train, validation, test, longest, new, how)


def read_lock() -> dict[str, Any]:
    """What dvc.lock says of each stage; nothing where it is missing or damaged."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe", pure=True).load(LOCK.read_text(encoding="utf-8"))
        return dict(found["stages"])
    except (OSError, ValueError, KeyError, TypeError, YAMLError):
        return {}


def made_by(lock: dict[str, Any], stage: str, params: Params, *, but: tuple[str, ...] = ()) -> bool:
    """Whether dvc.lock says that this stage has run with the values that params.yaml has now, `but` for some keys."""
    try:
        recorded = lock[stage]["params"]["params.yaml"]
        if any(key.startswith("profiles.") and key.split(".")[1] != params.profile for key in recorded):
            return False
        return all(params.value(key) == value for key, value in recorded.items() if key not in but)
    except (KeyError, TypeError):  # such a stage, or such a profile, is not there
        return False


def _shape(params: Params, told: Told, lock: dict[str, Any], how: dict[str, str]) -> Shape:
    model = params.section(Model).root
    if told.config:
        how["model"] = f"the shape of {told.config}"
        shapes = published("models")
        return shape_of(shapes[told.config], told.config) if told.config in shapes else read_config(Path(told.config))
    if (BASE / "config.json").is_file() and made_by(lock, "fetch_model", params, but=("machine",)):
        how["model"] = f"{BASE}/config.json"
        return read_config(BASE)
    if isinstance(model, EmbeddedModel):
        how["model"] = "made from params.yaml"
        return embedded_shape(model)
    local = Path(model.source).expanduser()
    if (local / "config.json").is_file():
        how["model"] = str(local / "config.json")
        return read_config(local)
    if cached := cached_file("models", model.source, model.revision, "config.json"):
        how["model"] = f"{model.source}, in the hub's cache"
        return read_config(cached)
    shapes = published("models")
    if model.source in shapes:
        how["model"] = f"{model.source}, as published (howto/published.yaml)"
        return shape_of(shapes[model.source], model.source)
    raise Stop(
        f"the shape of {model.source} is not known before it is fetched; name its config.json, or one that is alike, "
        f"with --config FILE (or one of: {', '.join(names())})"
    )


def _raw(params: Params, told: Told, lock: dict[str, Any], how: dict[str, str]) -> tuple[int, float, float, float]:
    """Raw rows, their bytes, and tokens and response tokens of a row that is not cut."""
    data = params.section(Data).root
    rows, size = 0, 0.0
    if told.rows is None:
        if made_by(lock, "fetch_data", params) and RAW.is_dir():
            rows, size = _rows_in(list(local_shards(RAW, None, "data.source").values()))
            how["rows"] = "data/raw"
        elif isinstance(data, EmbeddedData):
            from howto.embedded.corpus import make_corpus
            from howto.rows import write_rows

            made = list(make_corpus(data.seed, data.rows))
            with tempfile.TemporaryDirectory() as folder:
                write_rows(path := Path(folder) / "embedded.jsonl", made)
                rows, size = len(made), float(path.stat().st_size)
            how["rows"] = "made from params.yaml"
        elif (local := Path(data.source).expanduser()).exists():
            rows, size = _rows_in(_shards(data.rows()))
            how["rows"] = str(local)
        elif data.source in published("data"):
            found = published("data")[data.source]
            rows, size = found["rows"], float(found["bytes"])
            how["rows"] = f"{data.source}, as published (howto/published.yaml)"
    if told.rows is not None:
        rows, how["rows"] = told.rows, "as told by --rows"
    if not rows:
        raise Stop(
            f"how many rows {params.value(f'profiles.{params.profile}.data.source')} has is not known yet; say --rows N"
        )
    if not size:
        dolly = published("data")["databricks/databricks-dolly-15k"]
        size = rows * dolly["bytes"] / dolly["rows"]
        how["bytes"] = "rows as long as Dolly's"
    if told.tokens_per_row is not None:
        how["tokens"] = "as told by --tokens-per-row"
        return rows, size, told.tokens_per_row, told.tokens_per_row * RESPONSE
    per_row = TEMPLATE + max(0.0, size / rows - NAMES) * TOKENS_PER_BYTE
    how["tokens"] = f"{TOKENS_PER_BYTE} a byte of text, half of them answers; rows of all lengths, few of them long"
    return rows, size, per_row, per_row * RESPONSE


def _shards(rows: RowSource) -> list[Path]:
    """The files that fetch_data would take.

    Raises:
        Stop: there is none, as fetch_data would say.
    """
    return list(local_shards(Path(rows.source).expanduser(), rows.file, rows.key).values())


def _rows_in(files: list[Path]) -> tuple[int, float]:
    """Rows and bytes of files: lines are counted, in Parquet its own count is taken; in JSON rows are like Dolly's."""
    dolly = published("data")["databricks/databricks-dolly-15k"]
    rows, size = 0, 0.0
    for path in files:
        here = float(path.stat().st_size)
        if path.suffix == ".parquet":
            from pyarrow import ArrowException
            from pyarrow.parquet import read_metadata

            try:
                count = read_metadata(path).num_rows
            except ArrowException as error:
                raise Stop(f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())})") from None
            here = max(here, count * dolly["bytes"] / dolly["rows"])  # what it is without compression
        elif path.suffix in (".jsonl", ".csv"):
            with path.open("rb") as file:
                count, last = 0, b"\n"
                while chunk := file.read(2**20):
                    count, last = count + chunk.count(b"\n"), chunk[-1:]
                count += last != b"\n"
        else:
            count = round(here / dolly["bytes"] * dolly["rows"])
        rows, size = rows + count, size + here
    return rows, size


def _split(params: Params, raw: int) -> tuple[int, int, int]:
    """Rows for training, validation and test."""
    split = params.section(Prepare).split
    kept = raw * KEPT
    data = params.section(Data).root
    source = data.test() if isinstance(data, OutsideData) else None
    validation, test = (
        min(kept, part if isinstance(part, int) else part * kept) for part in (split.validation, split.test)
    )
    if source and Path(source.source).expanduser().exists():
        test = _rows_in(_shards(source))[0]
    rest = max(1.0, kept - validation - (0 if source else test))
    if split.train != "rest":
        rest = min(rest, split.train if isinstance(split.train, int) else split.train * kept)
    return max(1, round(rest)), round(validation), max(1, round(test))


def _cut(per_row: float, response: float, most: float) -> tuple[float, float]:
    """Tokens of a row that has at most so many. Lengths beyond the template are taken as exponentially distributed."""
    beyond, room = max(1.0, per_row - TEMPLATE), max(1.0, most - TEMPLATE)
    cut = min(per_row, TEMPLATE + beyond * (1 - math.exp(-room / beyond)))
    return cut, response * cut / per_row


def _counted(
    params: Params, told: Told, lock: dict[str, Any]
) -> tuple[tuple[int, int, int], float, float, float] | None:
    """Rows of each split, tokens of a row and of its response, and the longest row, if an earlier run has counted them
    with this model, these rows and this length."""
    same = {"train.max_length", "train.too_long"}
    stages = (("fetch_model", ("machine",)), ("fetch_data", ()), ("prepare", ()))
    if told != Told() or not all(made_by(lock, stage, params, but=but) for stage, but in stages):
        return None
    try:
        recorded = lock["train"]["params"]["params.yaml"]
        if any(recorded["train"][key.split(".")[1]] != params.value(key) for key in same):
            return None
        found = json.loads((METRICS / "train.json").read_text(encoding="utf-8"))
        splits = json.loads((METRICS / "data.json").read_text(encoding="utf-8"))["splits"]
        used, profile = found["rows"]["used"], recorded[f"profiles.{params.profile}.train"]
        passes = found["steps"] / math.ceil(used / profile["batch_size"])
        per_row = found["tokens"] / used / passes
        counts = (used, splits["validation"], splits["test"])
        lengths = [len(line) for line in (PREPARED / "train.jsonl").open("rb")]
        longest = min(params.value("train.max_length"), per_row * max(lengths) / (sum(lengths) / len(lengths)))
        return counts, per_row, found["response_tokens"] / used, float(longest)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):  # not there, or not as this version writes it
        return None


def _mean_answer(path: Path) -> float | None:
    """Tokens of an answer in a file of predictions, on average."""
    try:
        with path.open(encoding="utf-8") as file:
            lengths = [json.loads(line)["new_tokens"] for line in file]
        return float(sum(lengths) / len(lengths))
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return None
