"""Model and data come from this machine; what cannot be used is one line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from howto.core.errors import UserError
from howto.sources.files import row_files
from howto.sources.model_files import check_model
from howto.sources.shards import local_shards
from tests.support.fetching import ABOUT, OTHERS, PARTS, ROWS, SHARDS, WEIGHTS, Place, lay, run_by_anyone
from tests.support.hub import sha256


def test_a_local_model_folder_may_consist_of_links(place: Place) -> None:
    blobs = lay(place.folder / "blobs", {"model.safetensors": WEIGHTS, **PARTS, **OTHERS})
    snapshot = place.folder / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    said = place.brings("model", "{source: ./snapshot}")
    assert place.files("models/base") == {"model.safetensors": WEIGHTS, **PARTS} and sha256(WEIGHTS) in said


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        ({}, "", "mine: no such folder"),
        ({"config.json": b"{}"}, "", "mine: no model.safetensors weights"),
        ({"model.safetensors": WEIGHTS}, "", "mine: not a Hugging Face model (no config.json in it)"),
        ({"model.safetensors": WEIGHTS[:-9], **PARTS}, "", "mine/model.safetensors: not whole safetensors weights"),
        ({**PARTS, "model.safetensors": b"version https://git-lfs.github.com/spec/v1"}, "", "a git-lfs pointer"),
        ({**PARTS, "model.safetensors": WEIGHTS, "config.json": b"{"}, "", "mine/config.json: not a JSON object"),
        ({**PARTS, "model.safetensors": WEIGHTS}, f", weights_sha256: {'a' * 64}", "its sha256 is"),
        ({**PARTS, "model.safetensors": WEIGHTS}, ", revision: main", "a local path, which has no revision"),
    ],
)
def test_a_local_model_that_cannot_be_used_is_one_line(
    place: Place, files: dict[str, bytes], more: str, said: str
) -> None:
    lay(place.folder / "mine", files)
    place.fails("model", f"{{source: ./mine{more}}}", said)


def test_a_model_that_needs_code_of_its_own_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    lay(tmp_path, {"model.safetensors": WEIGHTS, "config.json": json.dumps(config).encode()})
    assert check_model(tmp_path, "mine") == ["model.safetensors"], "transformers has this architecture itself"
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"mine: config.json asks for code from the repository \(auto_map\)"):
        check_model(tmp_path, "mine")


def test_local_rows_are_copied_as_they_are_with_their_sha256(place: Place) -> None:
    lay(place.folder / "mine", {**ROWS, **ABOUT, "b/dataset_info.json": b"{}", ".git/x.json": b"{}"})
    text = subprocess.run(
        ["sha256sum", *sorted(ROWS)], check=True, cwd=place.folder / "mine", capture_output=True
    ).stdout
    said = place.brings("data", f"{{source: mine, sha256: {sha256(text)}}}")
    assert place.files("data/raw") == {f"rows/{name}": data for name, data in ROWS.items()}
    assert f"{len(ROWS)} files, sha256 {sha256(text)}" in said
    said = place.brings("data", "{source: mine, file: rows.jsonl, test_source: ./mine, test_file: '*.parquet'}")
    tests = {f"test/{name}": data for name, data in SHARDS.items()}
    assert place.files("data/raw") == {"rows/rows.jsonl": ROWS["rows.jsonl"], **tests}
    assert f"1 file, sha256 {sha256(ROWS['rows.jsonl'])}" in said


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "ROWS.CSV"])
def test_a_single_file_of_each_format_is_taken(tmp_path: Path, name: str) -> None:
    path = lay(tmp_path, {name: b"x"}) / name
    assert local_shards(path, None, "data.source") == {name: path}
    link = tmp_path / f"link{path.suffix}"
    link.symlink_to(path)
    assert local_shards(link, None, "data.source") == {link.name: link}, "what is named may be a link"


def test_links_within_a_data_folder_are_followed_once(tmp_path: Path) -> None:
    lay(tmp_path, {"elsewhere.md": b""})
    folder = lay(tmp_path / "mine", {"b.jsonl": b"b", "v2/a.jsonl": b"a", ".store/c.jsonl": b"c"})
    (folder / "latest.jsonl").symlink_to("b.jsonl")
    (folder / "stored").symlink_to(".store")
    (folder / "v2" / "up").symlink_to("..")
    (folder / "README.md").symlink_to(tmp_path / "elsewhere.md")
    (tmp_path / "link").symlink_to(folder)
    names = ["b.jsonl", "latest.jsonl", "stored/c.jsonl", "v2/a.jsonl"]
    assert list(local_shards(tmp_path / "link", None, "data.source")) == names


def leave(folder: Path) -> None:
    (folder / "mine" / "out.jsonl").symlink_to(folder / "secret.jsonl")


def leave_by_folder(folder: Path) -> None:
    (folder / "mine" / "out").symlink_to(folder)


def lead_nowhere(folder: Path) -> None:
    (folder / "mine" / "out").symlink_to("nothing")


def be_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "mine" / "out.jsonl")


def lock_file(folder: Path) -> None:
    (folder / "mine" / "rows.jsonl").chmod(0)


def lock_folder(folder: Path) -> None:
    (folder / "mine" / "data").chmod(0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (leave, "mine/out.jsonl: a link that leaves its data folder"),
        (leave_by_folder, "mine/out: a link that leaves its data folder"),
        (lead_nowhere, "mine/out: a link that leads nowhere"),
        (be_a_pipe, "mine/out.jsonl: neither a file nor a folder"),
        (lock_file, "mine/rows.jsonl: no permission"),
        (lock_folder, "mine/data: no permission"),
    ],
)
def test_a_data_folder_that_cannot_be_copied_is_one_line(place: Place, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    lay(place.folder, {"secret.jsonl": b"secret"})
    lay(place.folder / "mine", ROWS)
    damage(place.folder)
    place.write(data="{source: mine}")
    done = run_by_anyone(place.folder, "stages.fetch_data")
    (place.folder / "mine" / "data").chmod(0o755)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1, done.stderr
    assert not list((place.folder / "data").iterdir())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{source: ./nowhere.jsonl}", "nowhere.jsonl: no such file"),
        ("{source: params.yaml}", "ends in .jsonl, .json, .csv, .parquet is wanted"),
        (f"{{source: rows.jsonl, sha256: {'a' * 64}}}", "rows.jsonl: its sha256 is"),
        (f"{{source: two, sha256: {'a' * 64}}}", "two: its sha256 is"),
        ("{source: rows.jsonl, revision: main}", "has no revision"),
        ("{source: pictures}", "pictures: no file that ends in .jsonl, .json, .csv, .parquet (it has a.png)"),
        ("{source: .}", "it overlaps with data/raw"),
        ("{source: rows.jsonl, test_source: ./nowhere}", "mend data.test_source"),
        ("{source: rows.jsonl, test_file: rows.jsonl}", "test_file is given without test_source"),
    ],
)
def test_data_that_cannot_be_had_is_one_line_and_leaves_nothing(place: Place, data: str, said: str) -> None:
    lay(place.folder, {"rows.jsonl": b"{}\n", "pictures/a.png": b"", "two/a.jsonl": b"a", "two/b.jsonl": b"b"})
    place.fails("data", data, said)


@pytest.mark.parametrize(
    ("source", "pattern", "said"),
    [
        ("nowhere", None, "nowhere: no such file or folder"),
        ("rows.jsonl", "rows.jsonl", "is a single file"),
        ("two", "c.jsonl", "two: no file that matches 'c.jsonl' .*it has a.jsonl, b.jsonl"),
        ("empty", None, "empty: no file that ends in .*it is empty"),
        ("many", None, "it has 0.png, 1.png, 2.png, 3.png, 4.png, ..."),
    ],
)
def test_where_no_rows_are_the_line_says_what_is_there(
    tmp_path: Path, source: str, pattern: str | None, said: str
) -> None:
    lay(
        tmp_path,
        {"rows.jsonl": b"", "two/a.jsonl": b"", "two/b.jsonl": b"", **{f"many/{n}.png": b"" for n in range(6)}},
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        local_shards(tmp_path / source, pattern, "data.source")


def test_rows_are_chosen_by_name() -> None:
    names = ["b.json", "a.jsonl", "c/d.csv", "c/.d.csv", "state.json", "c/dataset_info.json", "x.txt"]
    assert row_files(names, None, "here", "data.source") == ["a.jsonl", "b.json", "c/d.csv"]
    assert row_files(names, "c/*", "here", "data.source") == ["c/d.csv"]
    with pytest.raises(UserError, match=r"here: no file that matches 'x.txt' .* mend data.source"):
        row_files(names, "x.txt", "here", "data.source")
