"""Masks in parts, over processes and after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from segmenter_files import rows, store
from tiny_segmenter import a_volume

from medloom.errors import DataError
from medloom.workflows.answer_log import AnswerLog
from medloom.workflows.predict import predict


def masks(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def whole(flat: Path, scans: Path, tmp_path: Path) -> dict[str, bytes]:
    predict(flat, [scans], out=tmp_path / "whole")
    return masks(tmp_path / "whole")


def test_parts_and_processes_draw_the_same_masks(
    flat: Path, scans: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    predict(flat, [scans], out=tmp_path / "spread", processes=2)
    assert masks(tmp_path / "spread") == whole
    out = tmp_path / "parts"
    for k in (2, 1):
        predict(flat, [scans], out=out, shard=f"{k}/2")
    assert not (out / "volumes.csv").exists()
    predict(flat, [scans], out=out, merge=True)
    found = {name: data for name, data in masks(out).items() if not name.endswith(".jsonl")}
    assert found == whole


def test_D135_a_mask_that_went_is_missed_and_drawn_anew(flat: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    for k in (1, 2):
        predict(flat, [scans], out=out, shard=f"{k}/2")
    (out / "знімок_mask.png").unlink()
    with pytest.raises(DataError, match=r"D135.*1 masks are not there"):
        predict(flat, [scans], out=out, merge=True)
    for k in (1, 2):
        predict(flat, [scans], out=out, shard=f"{k}/2")
    predict(flat, [scans], out=out, merge=True)
    assert len(rows(out)) == 5


def test_the_same_command_goes_on(
    flat: Path, scans: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count, out = AnswerLog.add, iter(range(9)), tmp_path / "masks"

    def add(self: AnswerLog, *what: Any) -> None:
        if next(count) == 3:
            raise KeyboardInterrupt
        real(self, *what)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerLog, "add", add)
        with pytest.raises(KeyboardInterrupt):
            predict(flat, [scans], out=out)
    (out / "one two_mask.png").unlink()
    done = predict(flat, [scans], out=out)
    assert any("2 of them were answered before" in line for line in done.lines)
    assert masks(out) == whole


def test_volumes_too(deep: Path, tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        store(tmp_path / "in" / patient / "scan.nii.gz", a_volume())
    predict(deep, [tmp_path / "in"], out=tmp_path / "whole")
    predict(deep, [tmp_path / "in"], out=tmp_path / "spread", processes=2)
    assert (tmp_path / "spread" / "volumes.csv").read_bytes() == (tmp_path / "whole" / "volumes.csv").read_bytes()
