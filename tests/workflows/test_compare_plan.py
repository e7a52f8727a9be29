"""What compare is asked for: models, seeds, recipes and runs become a list in which equal work is done once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medloom.data.phantom import write_phantom
from medloom.errors import UsageError
from medloom.workflows.compare_plan import Planned, listing, parse_models, parse_seeds, plan

RECIPE = {
    "name": "tiny",
    "data": {"patient": "column:patient", "accept": ["D124"]},
    "preprocess": {"size": 32, "channels": "grey"},
    "model": {"name": "vit", "options": {"patch_size": 8}},
    "train": {"epochs": 2, "max_steps": 60, "batch_size": 16},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=20, size=32, seed=1)


def _recipe(folder: Path, name: str = "tiny", **train: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "name": name, "train": {**RECIPE["train"], **train}}))  # type: ignore[dict-item]
    return path


def _plan(data: Path | None, out: Path, *sources: Path, **more: Any) -> list[Planned]:
    values: dict[str, Any] = {"recipe": None, "models": [], "seeds": (), "overrides": [], "accept": []}
    return plan(sources, data=data, out=out, **{**values, **more})


def test_models_with_options_and_seeds() -> None:
    found = parse_models(["resnet18, vit_tiny(patch_size=8, scales=[[2, 1], [3, 2]])@0+2", "timm/resnet10t@1"])
    assert found == [
        ("resnet18", {}, ()),
        ("vit_tiny", {"patch_size": 8, "scales": [[2, 1], [3, 2]]}, (0, 2)),
        ("timm/resnet10t", {}, (1,)),
    ]


@pytest.mark.parametrize("text", ["", "a,,b", "vit(", "vit(8)", "vit(=8)", "vit(a=[1)", "vit@x", "a b", "vit()x"])
def test_U231_not_a_model(text: str) -> None:
    with pytest.raises(UsageError, match="U231"):
        parse_models([text])


@given(st.text(max_size=30))
def test_any_text_is_a_list_of_models_or_one_coded_line(text: str) -> None:
    try:
        found = parse_models([text])
    except UsageError as problem:
        said = [problem]
    else:
        said = []
        assert all(name and isinstance(options, dict) for name, options, _ in found)
    assert all(p.code == "U231" and len(str(p).splitlines()) == 1 for p in said)


def test_seeds() -> None:
    assert parse_seeds("0, 2,2") == (0, 2)
    assert parse_seeds([3, 1]) == (3, 1)
    assert parse_seeds(None) == ()
    for text in ("0,x", "-1", "0.5", ""):
        with pytest.raises(UsageError, match="U231"):
            parse_seeds(text)


def test_one_seed_of_every_model_comes_before_the_next(data: Path, tmp_path: Path) -> None:
    models = ["conv2d,resnet18@4,vit"]
    found = _plan(data, tmp_path, recipe=_recipe(tmp_path), models=models, seeds=(0, 1))
    assert [(p.label, p.seed) for p in found] == [
        *(("conv2d", 0), ("resnet18", 4), ("vit", 0)),
        *(("conv2d", 1), ("vit", 1)),
    ]
    by_label = {p.label: p for p in found}
    assert by_label["vit"].recipe.model.options == {"patch_size": 8}  # the recipe's own model keeps its options
    assert by_label["conv2d"].recipe.model.options == {}
    assert len({p.directory.root for p in found}) == 5


def test_a_run_is_known_by_what_decides_its_result(data: Path, tmp_path: Path) -> None:
    def setting(name: str = "tiny", accept: tuple[str, ...] = (), **train: Any) -> str:
        return _plan(data, tmp_path, _recipe(tmp_path, name, **train), accept=accept)[0].setting

    assert setting() == setting(name="other") == setting(seed=3) == setting(accept=("D120",))
    assert setting() == setting(momentum=0.9)  # a default that is written out
    assert len({setting(), setting(batch_size=8), setting(max_steps=61)}) == 3


@pytest.mark.parametrize(
    ("key", "file"), [("model.weights", "w.st"), ("distill.teacher", "t/bundle/model.safetensors")]
)
def test_other_weights_under_the_same_name_are_another_run(key: str, file: str, data: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).write_bytes(b"one")

    def setting(folder: str) -> str:
        named = tmp_path / folder / Path(file).parts[0]
        return _plan(data, tmp_path, _recipe(tmp_path), overrides=[f"{key}={named}"])[0].setting

    first = setting("a")
    assert setting("b") == first  # wherever it lies
    (tmp_path / "a" / file).write_bytes(b"two")
    assert setting("a") != first
    (tmp_path / "a" / file).unlink()
    assert setting("a") not in (first, setting("b"))  # refused by the run, not here


def test_other_data_are_another_run(data: Path, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    copy = Path(shutil.copytree(data.parent, tmp_path / "copy")) / data.name
    one = listing(_plan(data, tmp_path, recipe)[0].recipe, {})
    assert listing(_plan(copy, tmp_path, recipe)[0].recipe, {}) == one  # wherever it lies
    copy.write_text("\n".join(copy.read_text().splitlines()[:-1]) + "\n")
    other = listing(_plan(copy, tmp_path, recipe)[0].recipe, {})
    assert one.stamp != other.stamp
    assert sum(one.images.values()) == sum(other.images.values()) + 1


def test_U230_nothing_to_compare(data: Path, tmp_path: Path) -> None:
    for more in ({}, {"models": ["vit"]}):
        with pytest.raises(UsageError, match="U230"):
            _plan(data, tmp_path, **more)


def test_U211_no_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="U211"):
        _plan(None, tmp_path, _recipe(tmp_path))


def test_U232_two_rows_of_one_name(data: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match="U232"):
        _plan(data, tmp_path, _recipe(tmp_path), _recipe(tmp_path / "sub", batch_size=8))
    with pytest.raises(UsageError, match="U232"):
        _plan(data, tmp_path, recipe=_recipe(tmp_path), models=["vit,vit"])


def test_U233_a_run_that_is_not_finished(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match="U233"):
        _plan(data, tmp_path, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(UsageError, match="U233"):
        _plan(data, tmp_path, tmp_path / "run")
