"""``data plan``: a recipe that fits its data, can be read, and says why."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from nifti_files import save
from PIL import Image

from medloom.config import DataConfig, Recipe, load_recipe
from medloom.data.phantom_masks import write_phantom_masks
from medloom.data.phantom_volumes import write_phantom_volumes
from medloom.data.plan import Plan, make_plan
from medloom.data.plan_memory import STEP, largest_batch, largest_patch, step_gigabytes
from medloom.data.plan_strides import BEHIND, WINDOWED, plan_strides, stride_factor
from medloom.data.scan import scan
from medloom.data.sources import open_dataset
from medloom.errors import DataError, UsageError
from medloom.models.maxvit_trunk import stage_strides, stage_windows
from medloom.models.registry import create_model
from medloom.workflows.plan import plan
from medloom.workflows.segment_steps import memory_line

Medloom = Callable[..., subprocess.CompletedProcess[str]]


def planned(root: Path, **options: object) -> tuple[Plan, Recipe]:
    config = DataConfig()
    made = make_plan(scan(open_dataset(root, config), config), **options)  # type: ignore[arg-type]
    return made, load_recipe(yaml.safe_load(made.as_yaml()))


def cases(root: Path, shape: tuple[int, int, int], spacings: list[tuple[float, float, float]], offset: int = 0) -> Path:
    rng = np.random.default_rng(0)
    for k, spacing in enumerate(spacings):
        image = (rng.normal(40, 20, shape) + offset).astype(np.int16)
        label = np.zeros(shape, dtype=np.uint8)
        label[4:8, 4:8, 4:6] = 1
        image[label > 0] += 100
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            save(root / folder / f"c{k}.nii.gz", array, np.diag([*spacing, 1.0]))
    return root


def test_volumes_of_several_sites(tmp_path: Path) -> None:
    made, recipe = planned(write_phantom_volumes(tmp_path / "p", n_patients=12, size=24).parent)
    assert recipe.volume.spacing == (2.0, 2.0, 2.0)
    assert recipe.volume.intensity == "percentile"
    assert recipe.data.classes == ("background", "organ", "lesion")
    assert recipe.data.label_values == (0, 1, 2)
    assert recipe.data.test_fraction == 0, "the data bring their splits"
    assert recipe.segmentation.patch == (24, 24, 24)
    assert recipe.segmentation.batch_dice
    assert recipe.model.name == "maxvit_unet_3d_tiny"
    assert made.gigabytes < 4
    reasons = [line for line in made.as_yaml().splitlines() if "#" in line]
    assert len(reasons) > 12


def test_pictures(tmp_path: Path) -> None:
    made, recipe = planned(write_phantom_masks(tmp_path / "p", n_patients=12, size=96).parent)
    assert recipe.preprocess.size == (96, 96)
    assert recipe.preprocess.resize == "squash"
    assert recipe.preprocess.channels == "grey"
    assert recipe.preprocess.statistics == "train"
    assert recipe.segmentation.patch is None
    assert recipe.model.name == "maxvit_unet_mini"
    assert made.facts["median_shape"] == [96, 96]


def test_pictures_of_many_shapes_and_depths_are_padded_and_clipped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k, size in enumerate([(700, 500), (500, 700), (640, 640)]):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 4000, size).astype(np.uint16)).save(tmp_path / "images" / f"{k}.png")
        drawn = np.zeros(size, dtype=np.uint8)
        drawn[50:100, 50:90] = 1
        Image.fromarray(drawn).save(tmp_path / "masks" / f"{k}.png")
    _, recipe = planned(tmp_path, memory=12.0)
    assert recipe.preprocess.resize == "pad"
    assert recipe.preprocess.intensity == "percentile"
    assert recipe.preprocess.size == (512, 512)
    assert recipe.data.test_fraction == recipe.data.val_fraction == 0.2


def test_computed_tomography_is_known_by_its_values(tmp_path: Path) -> None:
    root = cases(tmp_path, (20, 20, 20), [(1.0, 1.0, 1.0)] * 4, offset=-1000)
    _, recipe = planned(root)
    assert recipe.volume.intensity == "window"
    assert recipe.volume.window is not None
    assert -920 < recipe.volume.window[0] < recipe.volume.window[1] < -760


@pytest.mark.parametrize("model", ["maxvit_unet_3d_tiny", "unet_3d"])
def test_a_run_says_the_memory_that_the_plan_said(tmp_path: Path, model: str) -> None:
    made, recipe = planned(cases(tmp_path, (40, 40, 12), [(0.8, 0.8, 4.0)] * 5), model=model)
    assert recipe.segmentation.patch is not None
    size = recipe.segmentation.patch
    told = memory_line(recipe, size)
    assert told is not None
    assert f"about {made.gigabytes:.2g} GB in float32" in told
    half = recipe.model_copy(update={"train": recipe.train.model_copy(update={"amp": "bf16"})})
    assert "bfloat16" in str(memory_line(half, size))
    narrow = recipe.model.model_copy(update={"options": {"dims": [8, 16]}})
    assert memory_line(recipe.model_copy(update={"model": narrow}), size) is None


def test_test_cases_decide_nothing(tmp_path: Path) -> None:
    """Their spacing, their sizes and the values in their masks stay unseen, as imagesTs and labelsTs."""
    root = cases(tmp_path, (20, 20, 20), [(1.0, 1.0, 1.0)] * 4, offset=-1000)
    rng = np.random.default_rng(1)
    label = np.zeros((40, 40, 40), dtype=np.uint8)
    label[4:30, 4:30, 4:30] = 1
    for folder, array in (("imagesTs", rng.normal(900, 50, label.shape).astype(np.int16)), ("labelsTs", label)):
        (root / folder).mkdir()
        for k in range(6):
            save(root / folder / f"t{k}.nii.gz", array, np.diag([3.0, 3.0, 3.0, 1.0]))
    made, recipe = planned(root)
    assert recipe.volume.spacing == (1.0, 1.0, 1.0)
    assert recipe.volume.window is not None
    assert recipe.volume.window[1] < 0
    assert (made.facts["median_shape"], made.facts["cases"]) == ([20, 20, 20], 4)
    assert "0.4 percent of the voxels" in made.as_yaml(), "32 of 8,000, without those of the test cases"


def test_D115_a_plan_of_test_cases_alone(tmp_path: Path) -> None:
    root = cases(tmp_path, (20, 20, 20), [(1.0, 1.0, 1.0)] * 2)
    found = scan(open_dataset(root, DataConfig()), DataConfig())
    tested = found.dataset.with_records(replace(r, split="test") for r in found.dataset.records)
    with pytest.raises(DataError, match="D115"):
        make_plan(replace(found, dataset=tested))


def test_thick_slices_take_the_finest_tenth(tmp_path: Path) -> None:
    spacings = [(0.8, 0.8, z) for z in (3.0, 5.0, 5.0, 6.0, 6.0)]
    _, recipe = planned(cases(tmp_path, (40, 40, 12), spacings))
    assert recipe.volume.spacing is not None
    assert recipe.volume.spacing[:2] == (0.8, 0.8)
    assert 3.0 <= recipe.volume.spacing[2] < 5.0


@pytest.mark.parametrize("model", sorted(BEHIND))
def test_thick_slices_are_halved_last_and_the_network_takes_it(tmp_path: Path, model: str) -> None:
    root = cases(tmp_path, (40, 40, 12), [(0.8, 0.8, 4.0)] * 5)
    made, recipe = planned(root, model=model, memory=40.0)
    assert recipe.segmentation.patch == (40, 40, 16)
    options = recipe.model.options
    # 0.8 and 4 mm, then 1.6 and 4, 3.2 and 4, 6.4 and 8.
    assert [step[2] for step in options["strides"]][:3] == [1, 1, 2]
    assert len(options["strides"]) == len(BEHIND[model])
    assert made.gigabytes > step_gigabytes(model, (40, 40, 16), recipe.train.batch_size)
    assert made.gigabytes <= 40
    network = create_model(model, num_classes=2, in_chans=1, image_size=[40, 40, 16], **options)
    if model in WINDOWED:
        by_itself = stage_windows(None, (40, 40, 16), stage_strides(options["strides"], 3))
        assert stage_windows(options["window"], (40, 40, 16), stage_strides(options["strides"], 3)) == by_itself
    if model in ("unet_3d", "maxvit_unet_3d_tiny", "transunet_3d_tiny"):
        with torch.no_grad():
            assert network.eval()(torch.zeros(1, 1, 40, 40, 16)).shape == (1, 2, 40, 40, 16)


def test_nearly_cubic_voxels_and_networks_without_the_option_have_no_strides(tmp_path: Path) -> None:
    root = cases(tmp_path / "a", (40, 40, 12), [(0.8, 0.8, 1.5)] * 5)
    assert "options" not in planned(root)[0].as_yaml()
    root = cases(tmp_path / "b", (40, 40, 12), [(0.8, 0.8, 4.0)] * 5)
    assert "options" not in planned(root, model="swin_unetr", memory=40.0)[0].as_yaml()


@pytest.mark.parametrize("model", sorted(BEHIND))
@given(
    patch=st.lists(st.integers(2, 16).map(lambda n: 8 * n), min_size=3, max_size=3),
    spacing=st.lists(st.floats(0.3, 8), min_size=3, max_size=3),
)
def test_strides_follow_the_spacing(model: str, patch: list[int], spacing: list[float]) -> None:
    strides = plan_strides(model, patch, spacing)
    assert bool(strides) == (max(spacing) >= 2 * min(spacing))
    length, cells = list(spacing), list(patch)
    for step in strides:
        assert 2 in step
        large = [axis for axis in range(3) if cells[axis] >= 8]
        for axis in large:
            thick = length[axis] >= 2 * min(length[a] for a in large)
            assert (step[axis] == 1) == thick
        length = [mm * s for mm, s in zip(length, step)]
        cells = [-(-n // s) for n, s in zip(cells, step)]
    assert not strides or model in WINDOWED or math.prod(cells) > 1, "one cell leaves instance norm nothing to norm"
    assert stride_factor(model, strides) >= 1


@pytest.mark.parametrize("model", ["unet_3d", "maxvit_unet_3d_tiny"])
def test_the_memory_of_strides_is_that_of_the_network(model: str) -> None:
    """Bytes that autograd keeps, with strides and without."""
    steps = len(BEHIND[model])
    strides = [[2, 2, 1], [2, 2, 1], *([[2, 2, 2]] * (steps - 2))]
    kept = [_kept(model, options) for options in ({}, {"strides": strides})]
    assert kept[1] / kept[0] == pytest.approx(stride_factor(model, strides), rel=0.03)
    assert kept[0] / 32**3 == pytest.approx(STEP[model][1], rel=0.05)


def _kept(model: str, options: dict[str, Any]) -> int:
    network = create_model(model, num_classes=3, in_chans=1, image_size=[32, 32, 32], **options).train()
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = network(torch.zeros(1, 1, 32, 32, 32))
    assert answer.shape == (1, 3, 32, 32, 32)
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own)


def test_a_side_in_a_name_forbids_mirrors(tmp_path: Path) -> None:
    root = cases(tmp_path, (20, 20, 20), [(1.0, 1.0, 1.0)] * 3)
    assert planned(root)[1].augment.flip == 0.5
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "left kidney": 1}}))
    assert planned(root)[1].augment.flip == 0


@pytest.mark.parametrize("model", sorted(STEP))
def test_patch_and_batch_keep_to_the_memory(model: str) -> None:
    shape = (512, 480) if STEP[model][0] == 2 else (200, 180, 90)
    for memory in (6.0, 12.0, 40.0):
        patch = largest_patch(model, shape, memory)
        batch = largest_batch(model, patch, memory, 10**9, 100)
        assert batch >= 2
        assert step_gigabytes(model, patch, batch) <= memory
        assert all(n % (32 if len(shape) == 2 else 8) == 0 for n in patch)
    assert largest_patch(model, shape, 6.0) <= largest_patch(model, shape, 40.0)


def test_U229_no_patch_fits() -> None:
    with pytest.raises(UsageError, match="U229"):
        largest_patch("transunet", (512, 512), 1.0)


def test_U204_a_segmenter_of_another_kind_and_U228_no_masks(tmp_path: Path) -> None:
    root = cases(tmp_path / "v", (20, 20, 20), [(1.0, 1.0, 1.0)] * 3)
    for name in ("unet", "hatr_resnet50"):
        with pytest.raises(UsageError, match="U204"):
            planned(root, model=name)
    for name in ("a", "b"):
        (tmp_path / "c" / name).mkdir(parents=True)
        noise = np.random.default_rng(ord(name)).integers(0, 255, (20, 20)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "c" / name / "1.png")
    with pytest.raises(UsageError, match="U228"):
        planned(tmp_path / "c")


def test_the_verb_writes_a_recipe_that_keeps_what_was_given(tmp_path: Path, medloom: Medloom) -> None:
    root = cases(tmp_path / "v", (20, 20, 20), [(1.0, 1.0, 1.0)] * 5)
    rule = ("--set", "patient=pattern:c([0-9])", "--set", "classes=[background, organ]")
    done = medloom("data", "plan", root, "--out", tmp_path / "r" / "mine.yaml", *rule)
    assert done.returncode == 0, done.stderr
    assert "open" in done.stdout.splitlines()[-1]
    recipe = load_recipe(tmp_path / "r" / "mine.yaml")
    assert recipe.data.patient == "pattern:c([0-9])"
    assert recipe.data.classes == ("background", "organ")
    told = plan(root)
    assert "D120" in told.values["refused"]
    assert load_recipe(yaml.safe_load(told.values["recipe"])).segmentation.patch == (24, 24, 24)
    broken = medloom("data", "plan", tmp_path / "gone")
    assert broken.returncode == 3


def test_the_real_hippocampi(real_data: Path) -> None:
    brains = planned(real_data / "hippocampus")[1]
    assert brains.volume.spacing == (1.0, 1.0, 1.0)
    assert brains.segmentation.patch == (40, 56, 40)
