"""Folders to records: layouts, made and real, and every way in which they can be wrong."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from source_files import PIXELS, opened, refused, rows, tree

from medloom.config import DataConfig
from medloom.data.images import decode
from medloom.data.records import read_csv


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "valid", "testing"), ("TRAIN", "dev", "Test")]
)
def test_split_folders_under_their_usual_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    tree(tmp_path, *(f"{split}/{name}/a.png" for split in names for name in ("SICK", "NORMAL", "b")))
    dataset = opened(tmp_path)
    assert dataset.classes == ("NORMAL", "SICK", "b")
    assert Counter(r.split for r in dataset.records) == {"train": 3, "val": 3, "test": 3}


def test_class_folders_alone_and_folders_below_them(tmp_path: Path) -> None:
    tree(tmp_path, "normal/p1/a.png", "normal/b.png", "sick/p2/deep/c.png")
    dataset = opened(tmp_path)
    assert rows(dataset) == [("normal/b.png", "normal", None), ("normal/p1/a.png", "normal", None),
                             ("sick/p2/deep/c.png", "sick", None)]  # fmt: skip
    assert decode(dataset, dataset.records[0], DataConfig()).pixels.shape == (32, 32)


def test_an_archive_in_a_folder_of_its_own_name(tmp_path: Path) -> None:
    tree(tmp_path, "chest_xray/train/A/1.png", "chest_xray/test/B/2.png", "chest_xray/train/B/3.png")
    tree(tmp_path, "__MACOSX/chest_xray/train/A/._1.png", "chest_xray/train/A/._1.png")
    (tmp_path / "chest_xray/train/A/.DS_Store").write_bytes(b"x")
    dataset = opened(tmp_path)
    assert rows(dataset)[0] == ("chest_xray/test/B/2.png", "B", "test")
    assert len(dataset) == 3


def test_classes_in_the_recipes_order(tmp_path: Path) -> None:
    tree(tmp_path, "normal/a.png", "covid/b.png")
    assert opened(tmp_path, classes=("normal", "covid")).records[0].labels == (1,)
    assert opened(tmp_path, classes=("NORMAL", "COVID")).records[0].labels == (1,)
    assert opened(tmp_path, classes=("normal", "sick"), rename={"covid": "sick"}).records[0].labels == (1,)
    assert refused(tmp_path, classes=("normal", "sick")).code == "D116"
    assert any("positive class is 'normal'" in n for n in opened(tmp_path).notices)


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/2.png", "loose.png")
    (tmp_path / "a/readme.txt").write_text("x")
    notices = " ".join(opened(tmp_path).notices)
    assert "readme.txt" in notices
    assert "loose.png" in notices


def test_D113_links_are_not_followed_and_told(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", "secret.png")
    root = tree(tmp_path / "root", "a/1.png", "b/2.png")
    (root / "a/loop").symlink_to(root)
    (root / "a/out.png").symlink_to(outside / "secret.png")
    (root / "c").symlink_to(outside)
    dataset = opened(root)
    assert [r.id for r in dataset.records] == ["a/1.png", "b/2.png"]
    assert any(n.startswith("[D113] 3 symbolic links") for n in dataset.notices)
    (tmp_path / "link").symlink_to(root)
    assert len(opened(tmp_path / "link")) == 2  # the path that the user names may be a link itself


def test_D113_a_root_that_is_a_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refused(tmp_path / "loop").code == "D114"


def test_D114_absent_and_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(tmp_path / "absent").code == "D114"
    tree(tmp_path, "a/1.png", "b/2.png", "b/locked/3.png")
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    problem = refused(tmp_path)
    assert problem.code == "D114"
    assert "locked" in problem.place


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_D114_a_pipe_with_an_image_name_is_never_opened(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/2.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    dataset = opened(tmp_path)
    assert len(dataset) == 2
    assert any("pipe.png" in n for n in dataset.notices)


@pytest.mark.parametrize(
    ("present", "empty", "named"),
    [
        ((), (), "no images"),
        (("train/A/1.png", "train/B/2.png"), ("test",), "test"),
        (("train/A/1.png", "train/B/2.png", "test/A/3.png"), ("test/B",), "test/B"),
        (("A/1.png", "B/2.png"), ("C",), "C"),
        (("A/1.png",), (), "only one class"),
        (("1.png", "2.png"), (), "none in a class folder"),
    ],
)
def test_D115_empty_places_are_named(tmp_path: Path, present: Any, empty: Any, named: str) -> None:
    root = tmp_path / "set"
    root.mkdir()
    tree(root, *present)
    for folder in empty:
        (root / folder).mkdir(parents=True)
    problem = refused(root)
    assert problem.code == "D115"
    assert named in str(problem)


HOSTILE = [
    "with blanks .png",
    "Ім'я пацієнта.png",
    "-rf",
    "a\nb",
    "tab\there",
    "'; DROP TABLE",
    "<script>alert(1)<",
    "%s%n",
    'a,b;c"d',
]


def test_D126_hostile_file_names_work_and_survive_the_table(tmp_path: Path) -> None:
    names = [name.removesuffix(".png") + ".png" for name in HOSTILE]
    names += ["n" * 251 + ".png", unicodedata.normalize("NFD", "зйї.png"), unicodedata.normalize("NFC", "зйї2.png")]
    names += ["Case.png", "case.png"]
    root = tree(tmp_path / "set", *(f"{c}/{n}" for c in ("a", "клас б") for n in names))
    dataset = opened(root)
    assert {r.path for r in dataset.records} == {f"{c}/{n}" for c in ("a", "клас б") for n in names}
    assert all(decode(dataset, r, DataConfig()).pixels.shape == (32, 32) for r in dataset.records)
    dataset.write_csv(tmp_path / "records.csv")
    assert read_csv(tmp_path / "records.csv", root).records == dataset.records


def test_D126_names_that_are_not_utf8(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/2.png")
    os.rename(os.fsencode(tmp_path / "a/1.png"), os.fsencode(tmp_path / "a") + "/ім.png".encode("cp1251"))  # noqa: PTH104
    problem = refused(tmp_path)
    assert problem.code == "D126"
    str(problem).encode()


def test_D126_classes_that_differ_in_case_or_spelling(tmp_path: Path) -> None:
    tree(tmp_path / "x", "train/Normal/1.png", "train/Sick/1.png", "test/NORMAL/1.png")
    assert refused(tmp_path / "x").code == "D126"
    nfc, nfd = (unicodedata.normalize(form, "Ürgent") for form in ("NFC", "NFD"))
    tree(tmp_path / "y", f"train/{nfc}/1.png", "train/calm/1.png", f"test/{nfd}/1.png")
    assert opened(tmp_path / "y").classes == ("calm", nfc)
    assert refused(tree(tmp_path / "z", "a|b/1.png", "c/1.png")).code == "D126"


def test_exclude_by_name_and_pattern(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "a/2.png", "b/3.png", "b/x[1].png")
    dataset = opened(tmp_path, exclude=("a/1.png", "b/x[[]*"))
    assert [r.id for r in dataset.records] == ["a/2.png", "b/3.png"]
    assert refused(tmp_path, exclude=("*",)).code == "D115"


def test_D109_all_frames_are_records_of_their_own(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    frames = [PillowImage.fromarray(np.roll(PIXELS, k, axis=0)) for k in range(3)]
    frames[0].save(tmp_path / "b/m.tif", save_all=True, append_images=frames[1:])
    dataset = opened(tmp_path, frames="all")
    assert [(r.id, r.index) for r in dataset.records][1:] == [("b/m.tif#0", 0), ("b/m.tif#1", 1), ("b/m.tif#2", 2)]
    np.testing.assert_array_equal(
        decode(dataset, dataset.records[3], DataConfig(frames="all")).pixels, np.asarray(frames[2])
    )


def test_the_real_folders_open(real_data: Path) -> None:
    dataset = opened(real_data / "chest_xray")
    assert dataset.classes == ("NORMAL", "PNEUMONIA")
    assert Counter((r.split, r.labels[0]) for r in dataset.records) == {
        ("train", 0): 1341, ("train", 1): 3875, ("test", 0): 234, ("test", 1): 390,
    }  # fmt: skip
    assert all(r.patient for r in dataset.records)
    nih = opened(real_data / "nih_site")
    assert len(nih) == 602
    assert nih.multi_label
    assert set(nih.splits) == {"train", "test"}
    assert len({r.patient for r in nih.records}) == 408
    assert set(nih.records[0].covariates) == {"age", "sex", "view"}
