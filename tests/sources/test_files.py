"""Model and data come from this machine; what cannot be used is one line."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from howto.sources.files import local_files
from tests.support.fetching import ABOUT, OTHERS, PARTS, ROWS, SHARDS, WEIGHTS, Place, lay, run_by_anyone
from tests.support.hub import sha256


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
        ({**PARTS, "model.safetensors": WEIGHTS}, f", weights_sha256: {'a' * 64}", "expected sha256"),
    ],
)
def test_a_local_model_that_cannot_be_used_is_one_line(
    place: Place, files: dict[str, bytes], more: str, phrase: str
) -> None:
    lay(place.folder / "mine", files)
    place.fails("model", f"{{source: ./mine{more}}}", phrase)


def test_local_rows_are_copied_as_they_are_with_their_sha256(place: Place) -> None:
    no_rows = {"b/dataset_info.json": b"{}", "state.json": b"{}", ".git/x.json": b"{}"}
    mine = lay(place.folder / "mine", {**ROWS, **ABOUT, **no_rows})
    text = subprocess.run(["sha256sum", *sorted(ROWS)], check=True, cwd=mine, capture_output=True).stdout
    printed = place.succeeds("data", f"{{source: mine, sha256: {sha256(text)}}}")
    assert place.files("data/raw") == {f"rows/{name}": data for name, data in ROWS.items()}
    assert f"{len(ROWS)} files, sha256 {sha256(text)}" in printed and "not read" not in printed
    place.succeeds("data", "{source: mine, file: rows.jsonl, test_source: ./mine, test_file: '*.parquet'}")
    tests = {f"test/{name}": data for name, data in SHARDS.items()}
    assert place.files("data/raw") == {"rows/rows.jsonl": ROWS["rows.jsonl"], **tests}


def test_files_that_are_not_read_are_named(place: Place) -> None:
    lay(place.folder / "mine", {"rows.jsonl": b"{}\n", "more/notes.txt": b"", "rows.tsv": b"", **ABOUT})
    printed = place.succeeds("data", "{source: mine}")
    assert "mine: 2 files not read (more/notes.txt, rows.tsv)\n" in printed


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
    ("damage", "phrase"),
    [
        (lambda mine: (mine / "x.jsonl").symlink_to(mine.parent / "secret.jsonl"), "mine/x.jsonl: expected a file in"),
        (lambda mine: (mine / "x").symlink_to(mine.parent), "mine/x: expected a file in mine"),
        (lambda mine: (mine / "x").symlink_to("nothing"), "mine/x: expected a file in mine"),
        (lambda mine: os.mkfifo(mine / "x.jsonl"), "mine/x.jsonl: expected a file in mine"),
        (lambda mine: (mine / "rows.jsonl").chmod(0), "mine/rows.jsonl: no permission"),
    ],
)
def test_a_data_folder_that_cannot_be_copied_is_one_line(
    place: Place, damage: Callable[[Path], None], phrase: str
) -> None:
    lay(place.folder, {"secret.jsonl": b"secret"})
    damage(lay(place.folder / "mine", ROWS))
    place.write(data="{source: mine}")
    done = run_by_anyone(place.folder, "stages.fetch_data")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"error: {phrase}") and done.stderr.count("\n") == 1, done.stderr
    assert not list((place.folder / "data").iterdir())


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        ("{source: ./nowhere.jsonl}", "nowhere.jsonl: no such file or folder"),
        ("{source: params.yaml}", "params.yaml: expected a file that ends in .jsonl"),
        (f"{{source: two, sha256: {'a' * 64}}}", "two: expected sha256"),
        ("{source: rows.jsonl, revision: main}", "is a local path"),
        ("{source: nothing}", "it has state.json. Correct data.source"),
        ("{source: .}", "it overlaps with data/raw"),
        ("{source: rows.jsonl, test_source: ./nowhere}", "Correct data.test_source"),
        ("{source: rows.jsonl, test_file: rows.jsonl}", "test_file is given without test_source"),
    ],
)
def test_data_that_cannot_be_read_is_one_line_and_leaves_nothing(place: Place, data: str, phrase: str) -> None:
    lay(place.folder, {"rows.jsonl": b"{}\n", "nothing/state.json": b"", "two/a.jsonl": b"a", "two/b.jsonl": b"b"})
    place.fails("data", data, phrase)
