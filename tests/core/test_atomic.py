"""A file or folder that exists is complete."""

from pathlib import Path

import pytest

from howto.core.atomic import atomic_file, atomic_folder, write_json


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
