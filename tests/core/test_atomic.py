"""A file or folder that exists is complete."""

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from howto.core.atomic import atomic_file, atomic_folder, write_json
from howto.tools.cli import main
from tests.support.in_process import run_here, run_stage_here


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_file(path) as file:
        file.write("old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as folder:
        (folder / "new").touch()
        raise ZeroDivisionError
    assert [p.name for p in path.iterdir()] == ["old"]
    with atomic_folder(path) as folder:
        (folder / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".a[1].json.12345678.part").write_text("half", encoding="utf-8")
    (tmp_path / ".b.json.12345678.part").write_text("another's", encoding="utf-8")
    (tmp_path / ".c.12345678.part").mkdir()
    write_json(tmp_path / "a[1].json", {})
    with atomic_folder(tmp_path / "c"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.12345678.part", "a[1].json", "c"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_modes_of_files_follow_the_umask_also_where_a_library_does_not(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "folder") as folder:
            save_file({"a": np.zeros(3)}, folder / "a.safetensors")  # lets only the owner read it
            (folder / "inner").mkdir()
            os.close(os.open(folder / "inner" / "private", os.O_CREAT, 0o600))
        write_json(tmp_path / "b.json", {})
    finally:
        os.umask(before)
    files = [tmp_path / name for name in ("b.json", "folder/a.safetensors", "folder/inner/private")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}
    assert stat.S_IMODE((tmp_path / "folder/inner").stat().st_mode) == 0o777 & ~umask


def test_a_link_in_a_folder_is_followed_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(mode=0o600)
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "link").symlink_to(tmp_path / "secret")
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_all_that_the_stages_and_export_write_follows_the_umask(workplace: Path) -> None:
    params = workplace / "params.yaml"
    for path in workplace.iterdir():
        if path != params:
            shutil.rmtree(path)
    before = os.umask(0o002)
    try:
        both = ("infer@base", "infer@adapter", "general@base", "general@adapter")
        for stage in ("fetch_model", "fetch_data", "prepare", "train", *both, "evaluate"):
            assert run_stage_here(stage, workplace).returncode == 0
        assert run_here(main, workplace, "export").returncode == 0
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in workplace.rglob("*") if path != params}
    assert {path for path, mode in modes.items() if mode != (0o775 if path.is_dir() else 0o664)} == set()
    assert {path.parts[-2] for path in modes if path.suffix == ".safetensors"} == {"base", "adapter", "exported"}
