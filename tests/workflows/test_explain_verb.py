"""``medloom explain``: a folder, whole or absent, that speaks of the network that answers."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import medloom as package
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.deployment.bundle import load
from medloom.deployment.export import export_bundle
from medloom.errors import ModelError, ResourceError, UsageError
from medloom.models.registry import create_model
from medloom.workflows.explain import explain

CLASSES = ("NORMAL", "OPACITY")
RULE = Preprocess(size=(64, 64), channels="grey", mean=(0.5,), std=(0.25,))
PRUNED: dict[str, Any] = {"name": "token_pruned", "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
HATR: dict[str, Any] = {"name": "hatr_conv2d", "embed_dim": 32, "depth": 1, "num_heads": 2}
Run = Callable[..., subprocess.CompletedProcess[str]]


def bundle_of(folder: Path, options: dict[str, Any], **changes: Any) -> Path:
    torch.manual_seed(0)
    architecture = {**options, "num_classes": 2, "in_chans": 1, "image_size": 64}
    model = create_model(**architecture).eval()
    return export_bundle(
        model, folder, name=options["name"], architecture=architecture, classes=CLASSES, task="binary",
        preprocess=RULE, images=golden_images(2, 64, 5), **changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("pruned") / "bundle", PRUNED)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, pixels in zip(("a.png", "b<i>.png", "знімок.png"), golden_images(3, 90, 3)):
        Image.fromarray(pixels[:, :80]).save(folder / name)
    return folder


def kept_by_the_graph(bundle: Path, files: list[Path], k: int) -> list[set[int]]:
    """The first ``k`` of what the exported graph's own top-k puts first."""
    graph = onnx.load(bundle / "model.onnx")
    ranks = [node.output[1] for node in graph.graph.node if node.op_type == "TopK"]
    assert len(ranks) == 1
    graph.graph.output.append(onnx.helper.make_tensor_value_info(ranks[0], onnx.TensorProto.INT64, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    opened = load(bundle)
    pixels = np.stack([opened.preprocess.to_uint8(opened.pipeline.open(f, f.name)) for f in files])
    order = session.run([ranks[0]], {session.get_inputs()[0].name: opened.preprocess.normalise(pixels)})[0]
    return [set(row[:k].tolist()) for row in order]


def test_the_kept_cells_are_those_of_the_exported_graph(pruned: Path, scans: Path, tmp_path: Path) -> None:
    done = package.explain(pruned, [scans], out=tmp_path / "out")
    assert done.exit_code == 0
    assert done.lines[-1] == f"open {tmp_path / 'out' / 'tokens.html'}"
    values = json.loads((tmp_path / "out" / "tokens.json").read_text(encoding="utf-8"))
    files = [Path(row["id"]) for row in values["images"]]
    assert files == sorted(scans.iterdir())
    graph = kept_by_the_graph(pruned, files, 32)
    for row, kept, answer in zip(values["images"], graph, load(pruned).predict(files)):
        assert row["grid"] == [8, 8]
        assert {r * 8 + c for r, c in row["kept"]} == kept
        assert np.shape(row["score"]) == (8, 8)
        least_kept = min(row["score"][r][c] for r, c in row["kept"])
        assert sum(s > least_kept for line in row["score"] for s in line) == 31
        assert row["probability"] == answer.probabilities["OPACITY"]
        assert row["network_off"] < 1e-4
        assert row["answer"] is None  # this bundle has no operating point
        assert row["decision"] == "no operating point"
    assert values["keep_rate"] == {"bundle": 0.5, "shown": 0.5}
    assert values["model_hash"] == load(pruned).hash


def test_pictures_show_image_kept_and_score_on_the_models_pixels(pruned: Path, scans: Path, tmp_path: Path) -> None:
    done = explain(pruned, [scans], out=tmp_path / "out")
    names = [row["file"] for row in done.values["images"]]
    assert names == ["tokens_0001.png", "tokens_0002.png", "tokens_0003.png"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"tokens.html", "tokens.json", *names}
    opened = load(pruned)
    for row in done.values["images"]:
        panel = np.asarray(Image.open(tmp_path / "out" / row["file"]))
        assert panel.shape == (256, 3 * 256 + 2 * 4, 3)  # 64 px magnified four times
        model_input = opened.preprocess.to_uint8(opened.pipeline.open(row["id"], "x"))[:, :, 0]
        assert np.array_equal(panel[::4, :256:4, 0], model_input)
        kept = panel[::4, 260:516:4].astype(int)
        for r in range(8):
            for c in range(8):
                cell = (slice(8 * r, 8 * r + 8), slice(8 * c, 8 * c + 8))
                share = 1.0 if [r, c] in row["kept"] else 0.3
                assert np.abs(kept[(*cell, 0)] - share * model_input[cell]).max() <= 0.51


def test_the_page_is_self_contained_escapes_names_and_says_what_it_is_not(
    pruned: Path, scans: Path, tmp_path: Path
) -> None:
    explain(pruned, [scans], out=tmp_path / "out")
    page = (tmp_path / "out" / "tokens.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert "<i>" not in page
    assert html.escape("b<i>.png") in page
    assert "not why it answered as it did" in page
    assert "have not been tested as an explanation" in page
    assert "not a medical device" in page
    assert page.count("<figure>") == 3


def test_answers_of_both_views_stand_beside_maps_of_one(pruned: Path, scans: Path, tmp_path: Path) -> None:
    opened = load(pruned)
    both = replace(opened, pipeline=replace(opened.pipeline, flip_average=True))
    told, pages = "mean of the image and its mirror; the maps are of the image as it is", []
    for bundle, out in ((opened, tmp_path / "a"), (both, tmp_path / "b")):
        row = explain(bundle, [scans / "a.png"], out=out).values["images"][0]
        pages.append((told in (out / "tokens.html").read_text(encoding="utf-8"), row["score"], row["probability"]))
        assert row["network_off"] < 1e-4
    assert [page[0] for page in pages] == [False, True]
    assert pages[0][1] == pages[1][1]
    assert pages[0][2] != pages[1][2]


def test_another_keep_rate_changes_the_maps_and_not_the_answer(pruned: Path, scans: Path, tmp_path: Path) -> None:
    plain = explain(pruned, [scans], out=tmp_path / "a").values["images"]
    done = explain(pruned, [scans], out=tmp_path / "b", keep=0.25)
    for one, other, kept in zip(
        plain, done.values["images"], kept_by_the_graph(pruned, [Path(r["id"]) for r in plain], 16)
    ):
        assert other["probability"] == one["probability"]
        assert {r * 8 + c for r, c in other["kept"]} == kept
        assert other["probability_at_keep"] != one["probability"]
    assert done.values["keep_rate"] == {"bundle": 0.5, "shown": 0.25}
    assert "with 0.25 of the tokens" in (tmp_path / "b" / "tokens.html").read_text(encoding="utf-8")
    assert len(explain(pruned, [scans], out=tmp_path / "c", keep=1.0).values["images"][0]["kept"]) == 64


def test_token_weights_of_hatr_scale_by_scale(scans: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", HATR)
    done = explain(bundle, [scans / "a.png"], out=tmp_path / "out")
    row = done.values["images"][0]
    assert row["kept"] is None
    assert row["score"] is None
    assert list(row["weights"]) == ["token_weight.0", "token_weight.1"]
    assert np.asarray(Image.open(tmp_path / "out" / "tokens_0001.png")).shape == (256, 3 * 256 + 8, 3)
    with pytest.raises(UsageError) as caught:
        explain(bundle, [scans], out=tmp_path / "other", keep=0.5)
    assert caught.value.code == "U208"
    assert not (tmp_path / "other").exists()


def test_a_second_cut_leaves_fewer(scans: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", {**PRUNED, "second_keep": 0.5})
    rows = explain(bundle, [scans], out=tmp_path / "out").values["images"]
    assert {len(row["kept"]) for row in rows} == {16}


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5, float("nan")])
def test_U208_a_keep_rate_that_is_none(pruned: Path, scans: Path, tmp_path: Path, rate: float) -> None:
    with pytest.raises(UsageError) as caught:
        explain(pruned, [scans], out=tmp_path / "out", keep=rate)
    assert caught.value.code == "U208"
    assert not (tmp_path / "out").exists()


def test_C514_a_model_without_tokens_to_show(scans: Path, tmp_path: Path, medloom: Run) -> None:
    bundle = bundle_of(tmp_path / "bundle", {"name": "conv2d"})
    done = medloom("explain", bundle, scans, "--out", tmp_path / "out")
    assert done.returncode == 4
    assert done.stderr.startswith("error[C514] model conv2d")
    assert "token_pruned" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError):
        explain(bundle, [scans], out=tmp_path / "out")


def test_bad_images_are_rows_with_their_code(pruned: Path, scans: Path, tmp_path: Path, medloom: Run) -> None:
    (scans / "cut.png").write_bytes((scans / "a.png").read_bytes()[:200])
    (scans / "zero.png").write_bytes(b"")
    done = medloom("explain", pruned, scans, "--out", tmp_path / "out", "--json")
    assert done.returncode == 3
    assert done.stderr.startswith("error[D103]")
    values = json.loads(done.stdout)
    assert {Path(r["id"]).name: r["error"] for r in values["images"] if r["error"]} == {
        "cut.png": "D103", "zero.png": "D101"
    }  # fmt: skip
    assert values["shown"] == 3
    assert "Images refused" in (tmp_path / "out" / "tokens.html").read_text(encoding="utf-8")
    only = explain(pruned, [scans / "zero.png"], out=tmp_path / "none")
    assert only.exit_code == 3
    assert {p.name for p in (tmp_path / "none").iterdir()} == {"tokens.html", "tokens.json"}


def test_the_limit_takes_the_first_and_tells_of_the_others(pruned: Path, scans: Path, tmp_path: Path) -> None:
    done = explain(pruned, [scans], out=tmp_path / "out", limit=2)
    assert [done.values["found"], done.values["shown"]] == [3, 2]
    assert any("1 further images are not shown" in line for line in done.lines)
    assert "the first 2 of 3 images" in (tmp_path / "out" / "tokens.html").read_text(encoding="utf-8")
    with pytest.raises(UsageError):
        explain(pruned, [scans], out=tmp_path / "other", limit=0)


def test_U212_a_folder_that_holds_something_is_left_alone(pruned: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for place in (out, out / "mine.txt"):
        with pytest.raises(UsageError) as caught:
            explain(pruned, [scans], out=place)
        assert caught.value.code == "U212"
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert explain(pruned, [scans], out=out).exit_code == 0  # an empty one, as mktemp makes it


def test_T404_a_full_disk_leaves_no_folder(
    pruned: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloom.workflows import explain as module

    write, written = module.write_bytes, []

    def fills_up(path: Path, data: bytes) -> None:
        if len(written) == 2:
            raise OSError(28, os.strerror(28))
        written.append(path)
        write(path, data)

    monkeypatch.setattr(module, "write_bytes", fills_up)
    with pytest.raises(ResourceError) as caught:
        explain(pruned, [scans], out=tmp_path / "out")
    assert caught.value.code == "T404"
    assert len(written) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scans"]


def test_a_network_that_is_not_the_one_that_answers_is_told(
    pruned: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloom.workflows import explain as module

    def other(bundle: Any) -> torch.nn.Module:
        torch.manual_seed(1)
        return create_model(**bundle.document["architecture"]).eval()

    monkeypatch.setattr(module, "restore_model", other)
    module.explain(pruned, [scans], out=tmp_path / "out")
    page = (tmp_path / "out" / "tokens.html").read_text(encoding="utf-8")
    assert "The restored network&#39;s logits differ" in page
