"""D133 is found from listings: runs that will not fit into one table are refused before anything is trained."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from medloom.config import DataConfig
from medloom.data.phantom import write_phantom
from medloom.data.records import Dataset, Record
from medloom.data.splits import make_splits
from medloom.errors import DataError
from medloom.workflows import compare as verb
from medloom.workflows import compare_run
from medloom.workflows.compare import compare
from medloom.workflows.compare_check import Side, difference_between

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
from compared_runs import made

DRAWN = DataConfig(split_column="none", test_fraction=0.3, val_fraction=0.2, min_val_per_class=1)


def listed(count: int = 60, split: str | None = None) -> Dataset:
    """Two images of each patient."""
    records = [
        Record(f"{i}.png", f"{i}.png", labels=(i // 2 % 2,), patient=f"p{i // 2}", split=split) for i in range(count)
    ]
    return Dataset("some", Path("some"), ("a", "b"), tuple(records))


def finished(config: DataConfig = DRAWN, seed: int = 0, unread: tuple[str, ...] = ()) -> Side:
    """A run of the listed images but for ``unread``; patients 0 and 1 have an image in common."""
    records = (replace(r, pixel_hash="same" if r.id in ("0.png", "2.png") else r.id) for r in listed().records)
    dataset = listed().with_records(r for r in records if r.id not in unread)
    split = make_splits(dataset, config, seed).dataset
    return Side("run-0", split, config, given=True, unread=frozenset(unread))


def expected(config: DataConfig = DRAWN, dataset: Dataset | None = None) -> Side:
    return Side("row", listed() if dataset is None else dataset, config)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("unread", [(), ("5.png", "8.png")])
def test_a_run_of_any_seed_fits_the_listing_that_it_was_made_from(seed: int, unread: tuple[str, ...]) -> None:
    assert difference_between(finished(seed=seed, unread=unread), expected()) is None


def test_D133_the_same_images_with_another_test_part() -> None:
    other = DRAWN.model_copy(update={"split_seed": 1})
    assert "will be tested on" in str(difference_between(finished(), expected(other)))
    assert "will be tested on" in str(difference_between(expected(), expected(other)))
    assert difference_between(expected(), expected(DRAWN.model_copy(update={"val_fraction": 0.4}))) is None


def test_D133_images_that_the_other_has_not() -> None:
    fewer, more = listed(58), listed(62)
    for first in (finished(), expected()):
        assert "60; 58 are the same" in str(difference_between(first, expected(dataset=fewer)))
        assert "60; 60 are the same" in str(difference_between(first, expected(dataset=more)))
    silent = replace(finished(unread=("5.png",)), unread=None)
    assert difference_between(silent, expected()) is None  # which it could not read is not recorded


def test_D133_other_classes_labels_or_patients() -> None:
    data = listed()
    named = replace(data, classes=("a", "c"))
    assert "its classes are a, c" in str(difference_between(finished(), expected(dataset=named)))
    for change in ({"labels": (1,)}, {"patient": "p1"}, {"site": "x"}):
        first = replace(data.records[0], **change)  # type: ignore[arg-type]
        other = data.with_records((first, *data.records[1:]))
        assert "labels, patients or sites" in str(difference_between(finished(), expected(dataset=other)))


def test_a_share_of_the_labels_is_no_other_data_set() -> None:
    few = DRAWN.model_copy(update={"label_fraction": 0.5})
    assert difference_between(finished(few), expected(few)) is None
    assert difference_between(finished(), expected(few)) is None


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of other processes: nothing may be, where the comparison is refused."""
    asked: list[str] = []

    def child(arguments: list[str], *_: Any) -> Any:
        asked.append(arguments[0])
        return compare_run.Ended(1, "", "error[X001] not asked for here")

    monkeypatch.setattr(verb, "in_process", child)
    monkeypatch.setattr(compare_run, "in_process", child)
    return asked


def _recipe(folder: Path, name: str, **data: Any) -> Path:
    path = folder / f"{name}.yaml"
    values = {"name": name, "data": {"patient": "column:patient", **data}, "model": {"name": "conv2d"}}
    path.write_text(yaml.safe_dump(values))
    return path


def test_D133_comes_before_anything_is_trained(tmp_path: Path, begun: list[str]) -> None:
    here, there = (
        str(write_phantom(tmp_path / str(k) / "phantom", n_patients=n, size=32, seed=k)) for k, n in enumerate((20, 24))
    )
    given = made(tmp_path / "given", "vit_tiny").root
    one, other = _recipe(tmp_path, "one", path=here), _recipe(tmp_path, "other", path=there)
    untested = _recipe(tmp_path, "untested", path=here, split_column="none")
    for sources in ([given, one], [one, other], [untested]):
        with pytest.raises(DataError, match="D133"):
            compare(sources, out=tmp_path / "c")
    assert begun == []
    drawn = {"path": here, "split_column": "none", "test_fraction": 0.3}
    compare([_recipe(tmp_path, "x", **drawn), _recipe(tmp_path, "y", **drawn, val_fraction=0.3)], out=tmp_path / "c")
    assert begun == ["trial", "trial"]
