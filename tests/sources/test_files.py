"""Model and data come from this machine; what cannot be used is one line."""

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path

import datasets
import pytest

from howto.sources.dataset_rows import write_rows
from howto.sources.files import local_files
from tests.support.fetching import ABOUT, OTHERS, PARTS, ROWS, SHARDS, WEIGHTS, Place, lay, run_by_anyone
from tests.support.hub import sha256
from tests.support.raw_files import read_jsonl

INDEX = b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'


def test_a_local_model_folder_may_consist_of_links(place: Place) -> None:
    blobs = lay(place.folder / "blobs", {"model.safetensors": WEIGHTS, **PARTS, **OTHERS})
    snapshot = place.folder / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    printed = place.succeeds("model", "{source: ./snapshot}")
    assert place.files("models/base") == {"model.safetensors": WEIGHTS, **PARTS} and sha256(WEIGHTS) in printed


@pytest.mark.parametrize(
    ("files", "more", "phrase"),
    [
        ({}, "", "mine: no such file or folder"),
        ({**PARTS, "model.safetensors": WEIGHTS[:-9]}, "", "mine/model.safetensors: not complete safetensors"),
        ({**PARTS, "model.safetensors": b"version https://git-lfs.github.com/spec/v1"}, "", "a git-lfs pointer"),
        ({**PARTS, "model.safetensors": WEIGHTS, "config.json": b"{"}, "", "mine/config.json: not a JSON object"),
        (
            {**PARTS, "model-1.safetensors": WEIGHTS, "model.safetensors.index.json": INDEX},
            "",
            "mine: model-2.safetensors is",
        ),
        ({**PARTS, "model.safetensors": WEIGHTS}, f", weights_sha256: {'a' * 64}", f"got {sha256(WEIGHTS)}"),
    ],
)
def test_a_local_model_that_cannot_be_used_is_one_line(
    place: Place, files: dict[str, bytes], more: str, phrase: str
) -> None:
    lay(place.folder / "mine", files)
    place.fails("model", f"{{source: ./mine{more}}}", phrase)


def test_local_rows_are_copied_as_they_are_with_their_sha256(place: Place) -> None:
    no_rows = {"b/dataset_info.json": b"{}", "LICENSE": b"", ".git/x.json": b"{}", "README_de.txt": b""}
    mine = lay(place.folder / "mine", {**ROWS, **ABOUT, **no_rows})
    text = subprocess.run(["sha256sum", *sorted(ROWS)], check=True, cwd=mine, capture_output=True).stdout
    printed = place.succeeds("data", f"{{source: mine, sha256: {sha256(text)}}}")
    assert place.files("data/raw") == {f"rows/{name}": data for name, data in ROWS.items()}
    assert f"{len(ROWS)} files, sha256 {sha256(text)}" in printed and "not read" not in printed
    place.succeeds("data", "{source: mine, file: rows.jsonl, test_source: ./mine, test_file: '*.parquet'}")
    tests = {f"test/{name}": data for name, data in SHARDS.items()}
    assert place.files("data/raw") == {"rows/rows.jsonl": ROWS["rows.jsonl"], **tests}


def test_files_that_are_not_read_are_named(place: Place) -> None:
    others = [
        "b.XLSX",
        "c.jsonl.lz4",
        "cache-0a.arrow",
        "d.json.zip",
        "e",
        "f.txt",
        "more/README.xlsx.zip",
        "more/g.PQ",
    ]
    lay(place.folder / "mine", {"rows.jsonl": b"{}\n", **dict.fromkeys(others, b"x"), **ABOUT})
    printed = place.succeeds("data", "{source: mine}")
    named = [name for name in others if "README" not in name]
    assert f"mine: 7 files not read ({', '.join(named[:5])}, ...)\n" in printed
    printed = place.succeeds("data", "{source: mine, file: '*.json*'}")
    assert "mine: 2 files not read (c.jsonl.lz4, d.json.zip)\n" in printed
    assert "not read" not in place.succeeds("data", "{source: mine, file: rows.jsonl}")


def test_a_file_with_rows_is_read_whatever_its_name_begins_with(place: Place) -> None:
    files = {
        "README.csv": b"a",
        "LICENSE_texts.NDJSON": b"b",
        "state.json": b"c",
        "states/state.json": b"d",
        "B.TSV.ZST": b"e",
    }
    lay(place.folder / "mine", files)
    assert "not read" not in place.succeeds("data", "{source: mine}")
    assert place.files("data/raw/rows") == files


def saved(folder: Path) -> None:
    """What `save_to_disk` writes: a data set, one with two splits, and one with a single split."""
    rows = datasets.Dataset.from_dict({"instruction": ["How?", "Why?"], "response": ["So.", "Hence."]})
    rows.save_to_disk(str(folder / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(folder / "two"))
    datasets.DatasetDict({"dev": rows.select([0])}).save_to_disk(str(folder / "dev"))


HOW, WHY = b'{"instruction": "How?", "response": "So."}\n', b'{"instruction": "Why?", "response": "Hence."}\n'


@pytest.mark.parametrize(
    ("data", "rows", "description"),
    [
        ("{source: one}", HOW + WHY, "copied one, saved by datasets"),
        ("{source: two}", HOW + WHY, "split train (of train, test)"),
        ("{source: ./two, split: test}", WHY, "split test (of train, test)"),
        ("{source: dev}", HOW, "split dev (of dev)"),
    ],
)
def test_a_saved_data_set_is_read_by_its_splits(place: Place, data: str, rows: bytes, description: str) -> None:
    saved(place.folder)
    assert description in place.succeeds("data", data)
    assert place.files("data/raw") == {"rows/rows.jsonl": rows}


def test_held_out_rows_may_be_another_split_and_what_is_beside_saved_rows_is_named(place: Place) -> None:
    saved(place.folder)
    lay(place.folder / "two", {"more.jsonl": b"{}", "notes.txt": b"", "README.md": b""})
    printed = place.succeeds("data", "{source: two, test_source: two, test_split: test}")
    assert place.files("data/raw") == {"rows/rows.jsonl": HOW + WHY, "test/rows.jsonl": WHY}
    assert printed.count("two: 2 files not read (more.jsonl, notes.txt)\n") == 2


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        ("{source: two, split: dev}", "data.split: expected one of train, test; got dev"),
        ("{source: one, split: train}", "data.split: one has no splits"),
        ("{source: one, revision: main}", "is a local path, which has no 'main'"),
        ("{source: all}", "all: two/test is a data set that `save_to_disk` wrote. Name a folder of that kind"),
        ("{source: cut}", "cut: the datasets library cannot read it"),
        ("{source: lost}", "lost: the datasets library cannot read it"),
        ("{source: unsplit}", "unsplit: the datasets library cannot read it"),
    ],
)
def test_a_saved_data_set_that_cannot_be_read_is_one_line(place: Place, data: str, phrase: str) -> None:
    saved(place.folder)
    for name in ("all/two", "unsplit"):
        shutil.copytree(place.folder / "two", place.folder / name)
    shutil.rmtree(place.folder / "unsplit/train")
    for name in ("cut", "lost"):
        shutil.copytree(place.folder / "one", place.folder / name)
    arrow = "data-00000-of-00001.arrow"
    (place.folder / "cut" / arrow).write_bytes((place.folder / "one" / arrow).read_bytes()[:300])
    (place.folder / "lost" / arrow).unlink()
    place.fails("data", data, phrase)


def test_labels_become_names_and_what_is_no_text_an_object(tmp_path: Path) -> None:
    features = {
        "label": datasets.ClassLabel(names=["x", "y"]),
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "day": datasets.Value("date32"),
        "image": datasets.Image(),
    }
    message = {"role": "user", "content": "How\u2028?"}
    picture = {"bytes": b"a picture", "path": None}  # which cannot be decoded
    rows = [{"label": 1, "messages": [message], "day": date(2026, 1, 2), "image": picture}]
    rows += [dict.fromkeys(features)]
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    write_rows(made.to_iterable_dataset(), tmp_path / "rows.jsonl")
    assert read_jsonl(tmp_path / "rows.jsonl") == [
        {
            "label": "y",
            "messages": [message],
            "day": {"date": "2026-01-02"},
            "image": {"bytes": {"bytes": "9 bytes"}, "path": None},
        },
        dict.fromkeys(features),
    ]


def test_links_to_files_of_the_same_data_folder_are_followed_and_what_params_yaml_names(tmp_path: Path) -> None:
    lay(tmp_path, {"elsewhere.md": b""})
    folder = lay(tmp_path / "mine", {"b.jsonl": b"b", "v2/a.jsonl": b"a", ".store/c.jsonl": b"c"})
    (folder / "latest.jsonl").symlink_to("v2/a.jsonl")
    (folder / "stored.jsonl").symlink_to(".store/c.jsonl")
    (folder / "README.md").symlink_to(tmp_path / "elsewhere.md")
    (tmp_path / "link").symlink_to(folder)
    names = {"README.md", "b.jsonl", "latest.jsonl", "stored.jsonl", "v2/a.jsonl"}
    assert local_files(tmp_path / "link", None, "data.source").keys() == names
    (tmp_path / "link.jsonl").symlink_to(folder / "b.jsonl")
    assert local_files(tmp_path / "link.jsonl", None, "data.source") == {"link.jsonl": tmp_path / "link.jsonl"}


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda mine: (mine / "x.jsonl").symlink_to(mine.parent / "secret.jsonl"), "x.jsonl"),
        (lambda mine: (mine / "x").symlink_to(mine.parent), "x"),
        (lambda mine: (mine / "x").symlink_to("nothing"), "x"),
        (lambda mine: (mine / "x").symlink_to("x"), "x"),
        (lambda mine: os.mkfifo(mine / "x.jsonl"), "x.jsonl"),
    ],
)
def test_a_data_folder_that_cannot_be_copied_is_one_line(
    place: Place, damage: Callable[[Path], None], name: str
) -> None:
    lay(place.folder, {"secret.jsonl": b"secret"})
    damage(lay(place.folder / "mine", ROWS))
    place.fails("data", "{source: mine}", f"error: mine/{name}: expected a file in mine")


def test_a_file_that_may_not_be_read_is_one_line(place: Place) -> None:
    (lay(place.folder / "mine", ROWS) / "rows.jsonl").chmod(0)
    place.write(data="{source: mine}")
    done = run_by_anyone(place.folder, "stages.fetch_data")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: mine/rows.jsonl: no permission") and done.stderr.count("\n") == 1, done.stderr
    assert not list((place.folder / "data").iterdir())


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        ("{source: ./nowhere.jsonl}", "nowhere.jsonl: no such file or folder"),
        ("{source: params.yaml}", "params.yaml: expected a file that ends in .jsonl"),
        (f"{{source: two, sha256: {'a' * 64}}}", "two: expected sha256"),
        ("{source: rows.jsonl, revision: main}", "is a local path"),
        ("{source: rows.jsonl, split: train}", "is a local path, which has no 'train'"),
        ("{source: someone/rows, file: rows.jsonl, split: train}", "file excludes config and split"),
        ("{source: nothing}", "it has dataset_infos.json. Correct data.source"),
        ("{source: .}", "it overlaps with data/raw"),
        ("{source: rows.jsonl, test_source: ./nowhere}", "Correct data.test_source"),
        ("{source: rows.jsonl, test_file: rows.jsonl}", "test_file is given without test_source"),
    ],
)
def test_data_that_cannot_be_read_is_one_line_and_leaves_nothing(place: Place, data: str, phrase: str) -> None:
    lay(
        place.folder,
        {"rows.jsonl": b"{}\n", "nothing/dataset_infos.json": b"", "two/a.jsonl": b"a", "two/b.jsonl": b"b"},
    )
    place.fails("data", data, phrase)
