"""Where the pipeline's files are, relative to the project's root. dvc.yaml names the same paths."""

from pathlib import Path

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")

RAW = Path("data/raw")
RAW_ROWS, RAW_TEST, RAW_SOURCES = RAW / "rows", RAW / "test", RAW / "sources.json"
PREPARED = Path("data/prepared")
TRAIN, VALIDATION, TEST = (PREPARED / f"{split}.jsonl" for split in ("train", "validation", "test"))
PREDICTIONS = Path("data/predictions")
RESULTS = Path("log/hasil.jsonl")

BASE = Path("models/base")
ADAPTER = Path("models/adapter")
CHECKPOINTS = Path("models/checkpoints")

METRICS = Path("metrics")
DVC_METRICS = METRICS / "metrics.json"
EVALUATION = METRICS / "evaluation.json"
TRAINING = METRICS / "train.json"
REPORT = METRICS / "report.html"
