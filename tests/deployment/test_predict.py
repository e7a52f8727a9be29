"""``medloom predict``: files and folders in, a table out, no torch."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from medloom.data.phantom import golden_images
from medloom.deployment.bundle import load
from medloom.errors import DataError, ModelError, ResourceError, UsageError
from medloom.workflows.predict import find_images, predict

AWKWARD = ("plain.png", "with space.PNG", "знімок.jpg", "-rf.png", "line\nbreak.png", 'comma,quote".png')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    for place in (root, root / "b", root / "a" / "deep"):
        place.mkdir(parents=True, exist_ok=True)
    pixels = golden_images(len(AWKWARD) + 2, 48, 3)
    for name, picture in zip(AWKWARD, pixels):
        Image.fromarray(picture).save(root / name, quality=95)
    Image.fromarray(pixels[-1]).save(root / "b" / "x.bmp")
    Image.fromarray(pixels[-2]).save(root / "a" / "deep" / "y.tif")
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_bytes(b"")
    return root


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_folder_to_csv_in_a_stable_order(original: Path, folder: Path, tmp_path: Path) -> None:
    done = predict(original, [folder / "b", folder], out=tmp_path / "out.csv")
    found = rows((tmp_path / "out.csv").read_bytes().decode())
    expected = [folder / "b" / "x.bmp", *(folder / n for n in sorted(AWKWARD)), folder / "a" / "deep" / "y.tif"]
    assert [row["id"] for row in found] == [str(path) for path in expected]
    assert done.values["passed_over"] == 1
    assert done.exit_code == 0
    assert done.lines[-1] == f"open {tmp_path / 'out.csv'}"
    for row, answer in zip(found, load(original).predict(expected)):
        assert float(row["probability:PNEUMONIA"]) == answer.probabilities["PNEUMONIA"]  # exact: repr floats
        assert float(row["logit:NORMAL"]) == answer.logits["NORMAL"]
        assert row["label"] == answer.label


def test_json_says_which_model_answered(original: Path, folder: Path, tmp_path: Path) -> None:
    predict(original, [folder], out=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["model_hash"] == load(original).hash
    assert found["images"] == 8
    assert "not a medical device" in found["notice"]
    assert {"id", "label", "probabilities", "decision", "threshold", "logits", "error"} <= set(found["predictions"][0])


def test_without_out_the_table_is_the_text(original: Path, folder: Path) -> None:
    done = predict(original, [folder / "plain.png"])
    assert rows(done.text())[0]["id"] == str(folder / "plain.png")


def test_refused_images_have_a_row_with_their_code(original: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "zero.png").write_bytes(b"")
    whole = (folder / "знімок.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    done = predict(original, [folder], out=tmp_path / "out.csv")
    bad = {Path(r["id"]).name: r for r in rows((tmp_path / "out.csv").read_bytes().decode()) if r["error"]}
    assert {name: r["error"] for name, r in bad.items()} == {"zero.png": "D101", "cut.jpg": "D103"}
    assert bad["cut.jpg"]["label"] == bad["cut.jpg"]["probability:NORMAL"] == ""
    assert done.exit_code == 3  # two of ten is above one percent
    assert any("D103" in line for line in done.lines)
    assert predict(original, [folder], exclude_limit=0.2).exit_code == 0


def test_all_refused_is_still_a_whole_table(original: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    done = predict(original, [tmp_path / "a.png"], out=tmp_path / "out.csv")
    assert done.exit_code == 3
    assert len(rows((tmp_path / "out.csv").read_text())) == 1


def test_a_named_file_is_always_tried(original: Path, folder: Path) -> None:
    odd = folder / "notes.txt"
    Image.fromarray(golden_images(1, 48, 3)[0]).save(folder / "no_ending", format="PNG")
    answers = rows(predict(original, [odd, folder / "no_ending"]).text())
    assert [row["error"] for row in answers] == ["D102", ""]


def test_twice_named_is_answered_once(original: Path, folder: Path) -> None:
    assert len(rows(predict(original, [folder / "plain.png", folder, folder]).text())) == 8


def test_D113_links_out_of_the_folder_are_left_alone(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(golden_images(1, 48, 3)[0]).save(outside / "z.png")
    (folder / "link.png").symlink_to(outside / "z.png")
    (folder / "loop").symlink_to(folder)
    (folder / "inside.png").symlink_to(folder / "plain.png")
    found, _ = find_images([folder])
    names = [path.name for path in found]
    assert "link.png" not in names
    assert "inside.png" in names
    assert len(found) == 9


def test_D114_an_unreadable_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Taken away by hand, because root may read everything.
    real = os.scandir

    def guarded(path: str) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=r"error\[D114\].*deep.*Permission denied"):
        find_images([folder])


def test_D115_nothing_to_answer(original: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="D115"):
        predict(original, [tmp_path / "empty"])
    with pytest.raises(DataError, match="D115"):
        predict(original, [])


def test_wrong_paths_and_endings_are_usage_errors(original: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="U214"):
        predict(original, [tmp_path / "nowhere.png"])
    with pytest.raises(UsageError, match="U215"):
        predict(original, [folder], out=tmp_path / "out.xlsx")
    with pytest.raises(ModelError, match="C500"):
        predict(tmp_path, [folder])


def test_T405_an_unwritable_table_leaves_nothing(original: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        predict(original, [folder], out=tmp_path / "missing" / "out.csv")
    assert not (tmp_path / "missing").exists()


def test_progress_reaches_the_end(original: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    predict(original, [folder], batch_size=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 8) for k in range(1, 9)]


def test_a_classifier_answers_without_what_only_volumes_and_recipes_need(original: Path, folder: Path) -> None:
    """A cold start pays for every import."""
    code = (
        "import sys\n"
        "from medloom.workflows.predict import predict\n"
        "predict(sys.argv[1], sys.argv[2:])\n"
        "print([m for m in ('torch', 'scipy', 'medloom.config', 'yaml', 'matplotlib') if m in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, str(original), str(folder / "plain.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_predict_works_with_torch_not_installed(original: Path, folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in 'torch timm torchvision kornia cv2 onnx matplotlib jinja2'.split(): sys.modules[name] = None\n"
        "import medloom\n"
        "from medloom.workflows.predict import predict\n"
        "done = predict(sys.argv[1], [sys.argv[2]], out=sys.argv[3])\n"
        "print(done.values['images'], medloom.load(sys.argv[1]).predict(sys.argv[4])[0].label)"
    )
    arguments = [str(original), str(folder), str(tmp_path / "o.csv"), str(folder / "plain.png")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "8"
    predict(original, [folder], out=tmp_path / "here.csv")
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


def test_the_command_prints_and_exits_as_promised(
    medloom: Callable[..., subprocess.CompletedProcess[str]], bundle: Path, folder: Path, tmp_path: Path
) -> None:
    done = medloom("predict", bundle, folder, "--out", tmp_path / "o.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("o.csv")
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[100] ^= 1
    (bundle / "model.onnx").write_bytes(data)
    refused = medloom("predict", bundle, folder, "--out", tmp_path / "p.csv")
    assert refused.returncode == 4
    assert refused.stderr.startswith("error[C503]")
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "p.csv").exists()


def test_D101_refused_images_are_told_on_standard_error_too(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from medloom import cli

    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(SystemExit) as caught:
        cli.main(["predict", str(original), str(empty), "--json"])
    assert caught.value.code == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["refused"] == 1
    assert said.err.startswith(f"error[D101] {empty}: 1 of 1 images refused")
    assert len(said.err.splitlines()) == 1
