"""Recipes: strict, round-tripping, and explained when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medloom.config import Recipe, difference, load_recipe
from medloom.errors import UsageError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
RECIPES_DOC = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
SECTIONS = {name for name, value in Recipe().as_dict().items() if isinstance(value, dict)}


def test_a_recipe_survives_yaml() -> None:
    recipe = load_recipe({"preprocess": {"size": [96, 64]}, "augment": {"crop": [0.5, 1.0]}})
    assert load_recipe(yaml.safe_load(recipe.as_yaml())) == recipe
    assert load_recipe(yaml.safe_load(recipe.as_yaml())).hash == recipe.hash


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_overrides_reach_into_sections_and_read_numbers() -> None:
    recipe = load_recipe({}, ["train.learning_rate=1e-4", "data.accept=[D117, D120]", "model.options.depth=2"])
    assert recipe.train.learning_rate == 1e-4
    assert recipe.data.accept == ("D117", "D120")
    assert recipe.model.options == {"depth": 2}


@pytest.mark.parametrize(
    ("values", "overrides", "code", "says"),
    [
        ({"train": {"epoch": 3}}, (), "U203", "epochs"),
        ({"trian": {}}, (), "U203", "train"),
        ({"train": {"epochs": "3"}}, (), "U204", "integer"),
        ({"train": {"epochs": 0}}, (), "U204", "greater"),
        ({"train": {"learning_rate": float("nan")}}, (), "U204", "train.learning_rate"),
        ({}, ("train.epochs",), "U205", "--set"),
        ({"train": {"epochs": 3}}, ("train.epochs.x=1",), "U203", "holds a value"),
        ({}, ("train.epochs=[1",), "U205", "YAML"),
        ({"name": "a/b"}, (), "U204", "name"),
    ],
)
def test_a_wrong_recipe_is_explained(values: dict, overrides: tuple[str, ...], code: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(values, overrides)
    assert caught.value.code == code
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "code"), [(b"a: [", "U202"), (b"- 1", "U202"), (b"\xff\xfe\x00", "U202"), (None, "U201")]
)
def test_an_unreadable_recipe_is_refused(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert caught.value.code == code


def test_difference_names_what_changed() -> None:
    assert difference(Recipe(), load_recipe({}, ["train.epochs=3"])) == ["train.epochs: 20 -> 3"]


@given(st.text(max_size=30))
def test_any_override_text_gives_a_recipe_or_a_coded_error(text: str) -> None:
    code = "U2"
    try:
        load_recipe({}, [text])
    except UsageError as problem:
        code = problem.code
    assert code.startswith("U2")


@pytest.mark.parametrize(("text", "value"), [("off", "off"), ("bf16", "bf16"), ("auto", "auto")])
def test_off_is_a_word_and_no_boolean(text: str, value: str) -> None:
    recipe = load_recipe({}, [f"train.amp={text}"])
    assert recipe.train.amp == value
    assert load_recipe(yaml.safe_load(recipe.as_yaml())) == recipe
    assert load_recipe({}, ["augment.quarter_turns=true"]).augment.quarter_turns is True


def test_every_key_is_documented() -> None:
    text = RECIPES_DOC.read_text(encoding="utf-8")
    keys = [
        f"{section}.{key}" if section in SECTIONS else section
        for section, value in Recipe().as_dict().items()
        for key in (value if section in SECTIONS else [""])
    ]
    assert [key for key in keys if f"`{key}`" not in text] == []
