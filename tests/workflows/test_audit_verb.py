"""``medloom data audit`` as a user runs it, on phantoms and, where they are at hand, on the real chest X-rays."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from medloom.config import load_recipe
from medloom.data.phantom import write_phantom
from medloom.files import RunDirectory
from medloom.workflows.prepare import prepare

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_audit_writes_where_it_was_told_and_names_the_page(tmp_path: Path, medloom: Run) -> None:
    table = write_phantom(tmp_path / "phantom", n_patients=30, size=64, seed=0)
    before = sorted(p.name for p in table.parent.rglob("*"))
    done = medloom("data", "audit", table, "--out", tmp_path / "audit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("audit.html")
    assert sorted(p.name for p in (tmp_path / "audit").iterdir()) == ["audit.html", "audit.json"]
    assert sorted(p.name for p in table.parent.rglob("*")) == before


def test_D117_strict_exits_with_3(tmp_path: Path, medloom: Run) -> None:
    data = tmp_path / "data"
    source = write_phantom(tmp_path / "phantom", n_patients=20, size=64, seed=0).parent / "images"
    images = sorted(source.glob("*.png"))
    for split in ("train", "test"):
        for k, label in enumerate(("no", "yes")):
            (data / split / label).mkdir(parents=True)
            shutil.copy(images[k], data / split / label / f"{split}{k}.png")
    assert medloom("data", "audit", data).returncode == 0
    done = medloom("data", "audit", data, "--strict", "--json")
    assert done.returncode == 3
    assert "D117" in {f["code"] for f in json.loads(done.stdout)["findings"] if f["severity"] == "refuse"}


def test_D115_an_empty_folder_is_refused(tmp_path: Path, medloom: Run) -> None:
    (tmp_path / "empty").mkdir()
    done = medloom("data", "audit", tmp_path / "empty", "--out", tmp_path / "audit")
    assert done.returncode == 3
    assert done.stderr.startswith("error[D115]")
    assert not (tmp_path / "audit").exists()


def test_the_real_chest_x_rays_are_seen_as_they_are(real_data: Path, medloom: Run) -> None:
    done = medloom("data", "audit", real_data / "chest_xray", "--json")
    found = json.loads(done.stdout)
    assert found["counts"] == {
        "train": {"NORMAL": 1341, "PNEUMONIA": 3875},
        "test": {"NORMAL": 234, "PNEUMONIA": 390},
    }
    seen = {(f["code"], f["severity"], f["count"]) for f in found["findings"]}
    assert {("D117", "note", 26), ("D117", "note", 6), ("D119", "warn", 170)} <= seen
    assert "refuse" not in {severity for _, severity, _ in seen}
    assert any(code == "D124" for code, _, _ in seen)


def test_the_real_pneumoniamnist_needs_two_codes_and_its_recipe_accepts_both(real_data: Path, medloom: Run) -> None:
    data = real_data / "pneumoniamnist" / "pneumoniamnist.npz"
    refused = {
        f["code"]: f["count"]
        for f in json.loads(medloom("data", "audit", data, "--json").stdout)["findings"]
        if f["severity"] == "refuse"
    }
    assert refused.keys() == {"D117", "D120"}
    assert refused["D117"] == 8
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "pneumoniamnist.yaml"
    assert medloom("data", "audit", data, "--recipe", recipe, "--strict").returncode == 0


@pytest.mark.parametrize("rule", ["kermany-number", "pattern:(person[0-9]+)_"])
def test_D119_the_stricter_patient_rule_refuses_the_real_chest_x_rays(rule: str, real_data: Path, medloom: Run) -> None:
    done = medloom("data", "audit", real_data / "chest_xray", "--set", f"patient={rule}", "--strict", "--json")
    assert done.returncode == 3
    refused = {f["code"]: f["count"] for f in json.loads(done.stdout)["findings"] if f["severity"] == "refuse"}
    assert refused["D119"] == 170


def test_D118_copies_between_parts_that_a_run_made_stand_in_its_audit(tmp_path: Path) -> None:
    table = write_phantom(tmp_path / "phantom", n_patients=24, size=64, seed=0)
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    copies = []
    for k, row in enumerate(rows[::3]):
        name = f"images/copy{k}.jpg"
        Image.open(table.parent / row["path"]).convert("L").save(table.parent / name, quality=60)
        copies.append((row, row | {"path": name, "patient": f"{row['patient']}-again"}))
    carved = table.with_name("carved.csv")
    with carved.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["path", "label", "patient"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, *(copy for _, copy in copies)])
    values = {
        "data": {"path": str(carved), "val_fraction": 0.3, "test_fraction": 0.3, "accept": ["D124"]},
        "preprocess": {"size": 32, "channels": "grey"},
        "model": {"name": "conv2d"},
    }
    run = RunDirectory(tmp_path / "run")
    prepared = prepare(load_recipe(values), run, resume=False, quiet=True)
    part = {r.path: r.split for r in prepared.dataset.records}
    apart = sum(part[row["path"]] != part[copy["path"]] for row, copy in copies)
    assert apart
    findings = [f for f in json.loads(run.audit.read_text(encoding="utf-8"))["findings"] if f["code"] == "D118"]
    assert [(f["severity"], f["count"]) for f in findings] == [("warn", apart)]
