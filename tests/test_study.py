"""The study of rank and learning rate: its README and its picture show what its results say."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.rank_and_rate import study


def test_the_table_in_the_readme_is_that_of_the_results() -> None:
    text = study.README.read_text(encoding="utf-8")
    assert text.split(study.BEGIN)[1].split(study.END)[0] == study.table(study.read_results())


def test_results_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = study.read_results()
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results.csv")
    assert study.read_results() == {}
    study.write_results(results)
    assert study.read_results() == results


def test_the_table_begins_with_the_lowest_validation_loss() -> None:
    losses = [float(line.split("|")[4]) for line in study.table(study.read_results()).splitlines()[2:]]
    assert losses == sorted(losses) and len(losses) > 1


def test_the_picture_has_a_line_for_each_learning_rate_and_reads_on_any_ground(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="of the extra `study`")
    monkeypatch.setattr(study, "PICTURE", tmp_path / "picture.svg")
    results = study.read_results()
    study.draw({(rank, rate): found for rank, rate in ((4, 0.003), (4, 0.012)) for found in [results[4, 0.006]]})
    drawn = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert "<!-- learning rate 0.003 -->" in drawn and "<!-- learning rate 0.012 -->" in drawn
    assert "<!-- learning rate 0.006 -->" not in drawn
    assert "fill: #ffffff" not in drawn and "fill: #000000" not in drawn


def test_an_experiment_of_the_right_name_and_other_params_is_not_taken() -> None:
    assert study.has_its_params("HEAD", 8, 0.006)
    assert not study.has_its_params("HEAD", 4, 0.006) and not study.has_its_params("HEAD", 8, 0.003)
