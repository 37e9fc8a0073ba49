"""How the rank of the adapter and the learning rate go together, on the embedded profile: one DVC experiment for each.

python -m experiments.rank_and_rate.study             run what results.csv lacks, then write all below
python -m experiments.rank_and_rate.study --most 1    run one of it
python -m experiments.rank_and_rate.study --most 0    run nothing: take up what DVC has, write table and picture

writes:  results.csv, the table in README.md, picture.svg (with matplotlib: `pip install -e .[study]`)

Each experiment has its own copy of the project (`dvc exp run --temp`), so that the workspace stays as it is. Stopped at
any moment, the study goes on with the first experiment that it lacks.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from howto.stop import Stop, stops_cleanly
from howto.whole import whole_file

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
RESULTS, README, PICTURE = HERE / "results.csv", HERE / "README.md", HERE / "picture.svg"
RANKS = (1, 2, 4, 8, 16)
RATES = (0.003, 0.006, 0.012)
FIRST = (0.006, 0.012, 0.003)  # the profile's own rate first, then its neighbours
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
COLUMNS = ("rank", "learning_rate", "trainable_parameters", "validation_loss", "rougeL", "low", "high", "gain")

Cell = tuple[int, float]
Results = dict[Cell, dict[str, float]]


@stops_cleanly
def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", metavar="N", type=int, default=len(RANKS) * len(RATES), help="experiments to run")
    arguments = parser.parse_args()
    results = {**found_in_dvc(), **read_results()}
    write_results(results)
    missing = [(rank, rate) for rate in FIRST for rank in RANKS if (rank, rate) not in results]
    for rank, rate in missing[: arguments.most]:
        run(rank, rate)
        results = {**found_in_dvc(), **results}
        write_results(results)
    text = README.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[-1]
    with whole_file(README) as file:
        file.write(f"{before}{BEGIN}{table(results)}{END}{after}")
    draw(results)
    print(f"study: {len(results)} of {len(RANKS) * len(RATES)} experiments -> {RESULTS}, {README}, {PICTURE}")


def name(rank: int, rate: float) -> str:
    """What DVC calls the experiment."""
    return f"r{rank}-lr{rate:g}"


def run(rank: int, rate: float) -> None:
    """Run one experiment.

    Raises:
        Stop: DVC could not; it has said why.
    """
    settings = ("profile=embedded", f"train.lora.r={rank}", f"profiles.embedded.train.learning_rate={rate}")
    command = ["exp", "run", "--temp", "--name", name(rank, rate), *(part for one in settings for part in ("-S", one))]
    if subprocess.run([sys.executable, "-m", "dvc", *command], cwd=ROOT, check=False).returncode:
        raise Stop(f"{name(rank, rate)}: this experiment failed, see above; the study goes on with it when run again")


def found_in_dvc() -> Results:
    """The results of those experiments that DVC has, and that have their name's rank and rate."""
    from dvc.api import read
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        revisions = {exp: rev for some in repo.experiments.ls(all_commits=True).values() for exp, rev in some}
    results: Results = {}
    for rank, rate in ((rank, rate) for rank in RANKS for rate in RATES):
        if (revision := revisions.get(name(rank, rate))) and has_its_params(revision, rank, rate):
            scores, trained = (
                json.loads(read(f"metrics/{file}.json", repo=str(ROOT), rev=revision)) for file in ("metrics", "train")
            )
            results[rank, rate] = result(scores, trained)
    return results


def has_its_params(revision: str, rank: int, rate: float) -> bool:
    """Whether a revision's params.yaml says what its name does: a name may have been used for something else."""
    from dvc.api import read
    from ruamel.yaml import YAML

    params = YAML(typ="safe").load(read("params.yaml", repo=str(ROOT), rev=revision))
    found = params["profile"], params["train"]["lora"]["r"], params["profiles"]["embedded"]["train"]["learning_rate"]
    return found == ("embedded", rank, rate)


def result(scores: dict[str, Any], trained: dict[str, Any]) -> dict[str, float]:
    """One line of results.csv, less rank and rate."""
    adapter = scores["adapter"]
    return {
        "trainable_parameters": trained["trainable_parameters"],
        "validation_loss": trained["validation_loss"],
        "rougeL": adapter["rougeL"],
        "low": adapter["rougeL_low"],
        "high": adapter["rougeL_high"],
        "gain": scores["delta"]["rougeL"],
    }


def read_results() -> Results:
    """What results.csv holds."""
    if not RESULTS.is_file():
        return {}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return {
            (int(line["rank"]), float(line["learning_rate"])): {
                column: float(line[column]) if column != COLUMNS[2] else int(line[column]) for column in COLUMNS[2:]
            }
            for line in csv.DictReader(file)
        }


def write_results(results: Results) -> None:
    """Write results.csv, by rank and learning rate."""
    with whole_file(RESULTS) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((*cell, *(results[cell][column] for column in COLUMNS[2:])) for cell in sorted(results))


def table(results: Results) -> str:
    """The table of README.md, the lowest validation loss first."""
    lines = [
        "| rank | learning rate | trainable parameters | validation loss | ROUGE-L (F) | 95 % interval |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for (rank, rate), found in sorted(results.items(), key=lambda item: item[1]["validation_loss"]):
        lines.append(
            f"| {rank} | {rate:g} | {found['trainable_parameters']:,} | {found['validation_loss']:.4f} "
            f"| {found['rougeL']:.4f} | [{found['low']:.4f}, {found['high']:.4f}] |"
        )
    return "\n".join(lines) + "\n"


def draw(results: Results) -> None:
    """Draw validation loss and ROUGE-L by rank, a line for each learning rate; grey text reads on white and on black.

    Raises:
        Stop: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise Stop(f"{PICTURE}: not drawn, matplotlib is missing; install it with `pip install -e .[study]`") from None
    grey = "#7d8590"
    style = {"svg.hashsalt": "study", "font.size": 10.0}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), grey)
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.5, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, (rate, colour) in enumerate(zip(RATES, ("#3b82f6", "#e07b00", "#16a37b"), strict=True)):
            if not (cells := sorted(cell for cell in results if cell[1] == rate)):
                continue
            at = [RANKS.index(rank) + (number - 1) * 0.12 for rank, _ in cells]  # side by side, or bars would hide bars
            style_of_line = {"color": colour, "marker": "os^"[number], "label": f"learning rate {rate:g}"}
            left.plot(at, column(results, cells, "validation_loss"), **style_of_line)
            middle = column(results, cells, "rougeL")
            low, high = column(results, cells, "low"), column(results, cells, "high")
            bars = [
                [m - o for m, o in zip(middle, low, strict=True)],
                [h - m for h, m in zip(high, middle, strict=True)],
            ]
            right.errorbar(at, middle, yerr=bars, capsize=3, **style_of_line)
        left.set_ylabel("validation loss, nats a response token")
        right.set_ylabel("ROUGE-L (F), 95 % interval over rows")
        for axes in (left, right):
            axes.set_xticks(range(len(RANKS)), [str(rank) for rank in RANKS])
            axes.set_xlabel("rank")
            axes.grid(color=grey, alpha=0.25)
            axes.set_facecolor("none")
        left.legend(frameon=False)
        figure.savefig(PICTURE, transparent=True, metadata={"Date": None})


def column(results: Results, cells: Iterable[Cell], key: str) -> list[float]:
    """The values of one column."""
    return [results[cell][key] for cell in cells]


if __name__ == "__main__":
    main()
