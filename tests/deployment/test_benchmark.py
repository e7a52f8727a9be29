"""``medloom benchmark``: each runtime in its own process, and a page that names the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import parts
from tiny_segmenter import segmenter_parts

from medloom.data.phantom import golden_images
from medloom.deployment.bundle import write_bundle
from medloom.deployment.bundle_folder import open_folder
from medloom.deployment.bundle_rewrite import rewrite
from medloom.deployment.bundle_segmenter import write_segmenter
from medloom.deployment.openvino_ir import ir_of
from medloom.errors import UsageError
from medloom.workflows.benchmark import _child, benchmark, table
from medloom.workflows.cold_start import cold_start


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with ONNX and an IR."""
    root = tmp_path_factory.mktemp("both")
    opened = open_folder(write_bundle(root / "plain", **parts()))
    ir = ir_of(opened.content["model.onnx"])
    said = {name: {"precision": "float32", "tolerance": 1e-4} for name in ("onnx", "openvino")}
    files = {"model.xml": ir.xml, "model.bin": ir.weights}
    return rewrite(opened, root / "bundle", files=files, changes={"runtimes": said})


def test_each_runtime_is_measured_and_the_page_says_where(both: Path, tmp_path: Path) -> None:
    done = benchmark([both], out=tmp_path / "page.html", threads=1, seconds=0.0)
    rows = done.values["rows"]
    assert [row["runtime"] for row in rows] == ["onnx", "openvino"]
    for row in rows:
        assert row["threads"] == 1
        for batch in ("batch 1", "batch 16"):
            for what in ("network", "file to answer"):
                times = row[batch][what]
                assert 0 < times["median_ms"] <= times["p95_ms"] <= times["p99_ms"]
        assert row["cold_start"]["median_s"] > 0
        assert not row["cold_start"]["torch"]
        assert row["peak_memory_mib"] > 20
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("OpenVINO", "ONNX Runtime", "1 threads", "not a medical device"))
    assert json.loads((tmp_path / "page.json").read_text())["rows"] == json.loads(json.dumps(rows))
    assert len([line for line in done.lines if line.startswith(str(both))]) == 2
    assert table([{**rows[0], "peak_memory_mib": None}])[1].split()[-2] == "-"  # Windows does not tell


def test_the_peak_of_memory_is_the_childs_own(original: Path, tmp_path: Path) -> None:
    """Linux hands a child the highest figure of the process that started it, unless one asks for the program's own."""
    held = np.ones(500 * 2**17)  # 500 MiB
    image = tmp_path / "image.png"
    Image.fromarray(golden_images(1, 48, 0)[0]).save(image)
    request = {"bundle": str(original), "runtime": "onnx", "threads": 1, "images": [str(image)]}
    found = _child({**request, "seconds": 0.0, "most": 1})
    assert 20 < found["peak_memory_mib"] < held.nbytes / 2**20


SLOW = """
import json, sys, time, types
if "predict" in sys.orig_argv:
    time.sleep(2)
    sys.modules["torch"] = types.ModuleType("torch")
    with open({told!r}, "a") as file:
        file.write(json.dumps(sys.orig_argv) + "\\n")
"""


def test_a_cold_start_is_the_whole_command(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that is slow to start, and that imports torch: both show in the figure."""
    told, slow, image = tmp_path / "told.jsonl", tmp_path / "slow", tmp_path / "image.png"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW.format(told=str(told)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(slow), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr("medloom.workflows.cold_start.STARTS", 1)
    Image.fromarray(golden_images(1, 48, 0)[0]).save(image)
    found = cold_start(original, "onnx", 1, str(image), masks=False)
    (command,) = map(json.loads, told.read_text().splitlines())
    assert command[command.index("predict") :][:3] == ["predict", str(original), str(image)]
    assert command[-4:] == ["--runtime", "onnx", "--threads", "1"]
    assert found["median_s"] > 2
    assert 0 < found["cpu_s"] < found["median_s"]
    assert found["torch"]


def test_masks_are_measured_from_file_to_mask(tmp_path: Path) -> None:
    bundle = write_segmenter(tmp_path / "bundle", **segmenter_parts(3))
    (row,) = benchmark([bundle], threads=1, seconds=0.0).values["rows"]
    assert row["task"] == "segmentation"
    assert row["batch 1"]["file to answer"]["median_ms"] > 0
    assert row["cold_start"]["median_s"] > 0
    assert not row["cold_start"]["torch"]


def test_U215_U247_what_cannot_be_measured(both: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        benchmark([both], out=tmp_path / "page.pdf")
    assert caught.value.code == "U215"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    with pytest.raises(UsageError) as caught:
        benchmark([both], images=tmp_path, threads=1, seconds=0.0)
    assert caught.value.code == "U247"
    with pytest.raises(UsageError, match=r"U247.*predict failed in onnx: error\[D"):
        cold_start(both, "onnx", 1, str(tmp_path / "broken.png"), masks=False)
