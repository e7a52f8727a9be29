"""Folders, tables and npz files to records: layouts, and every way in which they can be wrong."""

from __future__ import annotations

import io
import os
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from medloom.config import DataConfig
from medloom.data.images import decode
from medloom.data.records import Dataset, read_csv
from medloom.data.sources import open_dataset
from medloom.data.tables import read_table
from medloom.errors import DataError

PIXELS = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(PIXELS).save(path, "PNG")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        put(root / name)
    return root


def table(root: Path, text: str | bytes, *names: str, name: str = "labels.csv") -> Path:
    tree(root, *names)
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root / name


def opened(path: Path, **config: Any) -> Dataset:
    return open_dataset(path, DataConfig(**config))


def refused(path: Path, **config: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(path, **config)
    assert "\n" not in str(caught.value)
    return caught.value


def rows(dataset: Dataset) -> list[tuple[str, str, str | None]]:
    return [(r.id, dataset.label_names(r), r.split) for r in dataset.records]


# Folders


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


# Tables


def test_columns_are_found_and_the_rest_kept(tmp_path: Path) -> None:
    text = "Image Index,Finding Labels,Patient ID,age,hospital,official_split\nx/1.png,sick,p1,50,north,train_val\n"
    path = table(tmp_path, text + "2.png,No Finding,p2,,south,test\n", "x/1.png", "images/2.png")
    for target in (path, tmp_path):
        dataset = opened(target)
        assert rows(dataset) == [("x/1.png", "sick", "train"), ("images/2.png", "No Finding", "test")]
        assert [(r.patient, r.site, r.covariates) for r in dataset.records] == [
            ("p1", "north", {"age": "50"}),
            ("p2", "south", {}),
        ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1251"])
def test_D116_separators_line_ends_and_encodings(tmp_path: Path, separator: str, end: str, encoding: str) -> None:
    lines = ["image;label;нотатка", "a.png; норма ;  рядок  ", '"b.png";хвороба;"x;y"', ";;", ""]
    text = end.join(lines[:3]).replace(";", separator) + end + separator * 2 + end
    path = table(tmp_path, text.encode(encoding), "a.png", "b.png")
    dataset = opened(path, encoding="cp1251" if encoding == "cp1251" else "utf-8")
    assert rows(dataset) == [("a.png", "норма", None), ("b.png", "хвороба", None)]
    assert dataset.records[0].covariates == {"нотатка": "рядок"}


def test_D116_a_wrong_encoding_names_line_and_option(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label\na.png,x\nb.png,норма\n".encode("cp1251"), "a.png", "b.png")
    problem = refused(path)
    assert problem.code == "D116"
    assert problem.place.endswith(":3")
    assert "data.encoding=cp1251" in problem.remedy
    assert refused(path, encoding="nonsense").code == "D116"


@pytest.mark.parametrize(
    ("text", "line", "word", "config"),
    [
        ("image,label\na.png,x\nb.png,\n", 3, "no label", {}),
        ("image,label\na.png,x\nc.png,y\n", 3, "no file c.png", {}),
        ("image,label\na.png,x\n,y\n", 3, "names no image", {}),
        ("image,label\na.png,x\nb.png,y\n./a.png,x\n", 4, "labels.csv:2 too", {}),
        ("image,label\na.png,x\nb.png,y,z\n", 3, "3 cells under 2", {}),
        ("image,label\na.png,x\nb.png\n", 3, "1 cells under 2", {}),
        ('image,label\na.png,x\nb.png,"y\n', 3, "CSV", {}),
        ("image,label\na.png,x\nb.png,yy\n", 3, "outside the classes", {"classes": ("x", "y")}),
        ("image,label\na.png,1\nb.png,-1\n", 3, "uncertain", {}),
        ("image,label\na.png,x\nb.png,uncertain\n", 3, "uncertain", {"classes": ("x", "y")}),
        ("image,label,split\na.png,x,train\nb.png,y,fold3\n", 3, "fold3", {}),
        ("image,label,split\na.png,x,train\nb.png,y,\n", 3, "no split", {}),
        ("image,label\na.png,x|y\nb.png,y\n", 2, "2 labels", {"multi_label": False}),
        ('image,label,note\na.png,x,"two\nlines"\nb.png,,\n', 4, "no label", {}),
    ],
)
def test_D116_refusals_name_their_line(tmp_path: Path, text: str, line: int, word: str, config: Any) -> None:
    problem = refused(table(tmp_path, text, "a.png", "b.png"), **config)
    assert problem.code == "D116"
    assert problem.place.endswith(f":{line}")
    assert word in problem.problem


@pytest.mark.parametrize(
    ("text", "word", "config"),
    [
        ("picture,label\na.png,x\n", "names the images", {}),
        ("image,grade\na.png,x\n", "holds the labels", {}),
        ("image,label\na.png,x\n", "no column 'foto'", {"image_column": "foto"}),
        ("image,label,image\na.png,x,a.png\n", "two columns", {}),
    ],
)
def test_D116_columns(tmp_path: Path, text: str, word: str, config: Any) -> None:
    problem = refused(table(tmp_path, text, "a.png"), **config)
    assert problem.code == "D116"
    assert word in problem.problem


def test_D115_a_table_without_rows(tmp_path: Path) -> None:
    for text in ("", "image,label\n", "image,label\n,,\n\n"):
        assert refused(table(tmp_path, text, "a.png")).code == "D115"


def test_D113_paths_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    tree(tmp_path, "out.png")
    for cell in ("../out.png", str(tmp_path / "out.png")):
        problem = refused(table(tmp_path / "set", f"image,label\na.png,x\n{cell},y\n", "a.png"))
        assert problem.code == "D113"
    (tmp_path / "set/link.png").symlink_to(tmp_path / "out.png")
    assert refused(table(tmp_path / "set", "image,label\na.png,x\nlink.png,y\n")).code == "D113"


def test_D116_image_files_without_a_row_are_told(tmp_path: Path) -> None:
    dataset = opened(table(tmp_path, "image,label\nx/a.png,x\nx/b.png,y\n", "x/a.png", "x/b.png", "x/c.png"))
    assert "[D116] 1 image files have no row in the table: x/c.png" in dataset.notices


def test_D116_uncertain_labels_by_policy(tmp_path: Path) -> None:
    path = table(
        tmp_path, "image,label\na.png,0\nb.png,1.0\nc.png,-1\nd.png,uncertain\n", *["a.png", "b.png", "c.png", "d.png"]
    )
    classes = {"classes": ("0", "1")}
    assert [r.labels for r in opened(path, uncertain="drop", **classes).records] == [(0,), (1,)]
    assert [r.labels for r in opened(path, uncertain="negative").records] == [(0,), (1,), (0,), (0,)]
    assert [r.labels for r in opened(path, uncertain="positive").records] == [(0,), (1,), (1,), (1,)]
    named = opened(path, uncertain="positive", classes=("normal", "sick"))
    assert [named.label_names(r) for r in named.records] == ["normal", "sick", "sick", "sick"]


def test_several_labels_with_no_finding_and_none(tmp_path: Path) -> None:
    text = "image,finding_labels\na.png,Mass|Edema\nb.png,No Finding\nc.png,\nd.png,Edema\n"
    dataset = opened(table(tmp_path, text, "a.png", "b.png", "c.png", "d.png"))
    assert dataset.multi_label
    assert dataset.classes == ("Edema", "Mass")
    assert [r.labels for r in dataset.records] == [(0, 1), (), (), (0,)]


def test_rename_makes_two_classes_of_many_findings(tmp_path: Path) -> None:
    text = "image,finding_labels\na.png,Edema|Pneumonia\nb.png,No Finding\nc.png,Hernia\n"
    path = table(tmp_path, text, "a.png", "b.png", "c.png")
    dataset = opened(path, rename={"No Finding": "NORMAL", "Pneumonia": "PNEUMONIA", "*": ""})
    assert rows(dataset) == [("a.png", "PNEUMONIA", None), ("b.png", "NORMAL", None)]
    assert any("1 rows were left out" in n for n in dataset.notices)


def test_one_column_per_class(tmp_path: Path) -> None:
    text = "path,sex,Edema,Mass\na.png,F,1.0,0.0\nb.png,M,,-1.0\n"
    path = table(tmp_path, text, "a.png", "b.png")
    classes = ("Edema", "Mass")
    problem = refused(path, classes=classes)
    assert (problem.code, problem.place) == ("D116", "labels.csv:3")
    dataset = opened(path, classes=classes, uncertain="positive")
    assert [r.labels for r in dataset.records] == [(0,), (1,)]
    assert dataset.records[0].covariates == {"sex": "F"}
    assert len(opened(path, classes=classes, uncertain="drop")) == 1


def test_other_spellings_of_a_path(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "й.png") for form in ("NFC", "NFD"))
    dataset = opened(table(tmp_path, f"image,label\nx\\a.png,p\n{nfc},q\n", "x/a.png", nfd))
    assert [r.path for r in dataset.records] == ["x/a.png", nfd]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    tree(tmp_path, "a.png", "b.png")
    columns = {"image": ["a.png", "b.png"], "labels": [["x", "y"], []], "age": [50, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    dataset = opened(tmp_path / "t.parquet")
    assert [r.labels for r in dataset.records] == [(0, 1), ()]
    assert dataset.records[0].covariates == {"age": "50"}
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    assert refused(tmp_path / "t.parquet").code == "D116"


def test_neither_table_nor_folder(tmp_path: Path) -> None:
    for name in ("a.xlsx", "a.txt"):
        (tmp_path / name).write_bytes(b"x")
        assert refused(tmp_path / name).code == "D116"


@given(st.lists(st.tuples(*[st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=8)] * 2), max_size=6))
def test_D116_any_cells_come_back_stripped(cells: list[tuple[str, str]]) -> None:
    import csv
    import tempfile

    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerows([("image", "label"), ("x", "y"), *cells])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(out.getvalue(), encoding="utf-8", newline="")
        found = read_table(path)
    want = [tuple(cell.strip() for cell in row) for row in cells]
    assert list(found.rows)[1:] == [row for row in want if any(row)]


# npz


def npz(path: Path, **arrays: Any) -> Path:
    grey = np.random.default_rng(0).integers(0, 255, (6, 28, 28), dtype=np.uint8)
    y = np.array([[0], [1], [0], [1], [1], [0]], dtype=np.uint8)
    full = {f"{s}_{k}": v for s in ("train", "val", "test") for k, v in (("images", grey), ("labels", y))}
    full |= arrays
    np.savez_compressed(path, **{k: v for k, v in full.items() if v is not None})
    return path


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (64, 64), (12, 20, 1)])
def test_npz_of_one_label(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (6, *shape), dtype=np.uint8)
    path = npz(tmp_path / "x.npz", train_images=pixels)
    dataset = opened(path, classes=("normal", "sick"))
    assert Counter(r.split for r in dataset.records) == {"train": 6, "val": 6, "test": 6}
    assert (dataset.records[1].id, dataset.records[1].labels, dataset.records[1].index) == ("train/1", (1,), 1)
    image = decode(dataset, dataset.records[1], DataConfig())
    np.testing.assert_array_equal(image.pixels, pixels[1].squeeze())
    assert len(opened(tmp_path)) == 18  # the folder that holds it will do


def test_npz_of_several_labels(tmp_path: Path) -> None:
    y = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1], [0, 1, 0]])
    dataset = opened(npz(tmp_path / "x.npz", **{f"{s}_labels": y for s in ("train", "val", "test")}))
    assert dataset.multi_label
    assert [r.labels for r in dataset.records[:3]] == [(1, 2), (), (0,)]


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"val_labels": None}, "D116"),
        ({"test_images": None}, "D116"),
        (
            {f"{s}_{k}": None for s in ("train", "val", "test") for k in ("images", "labels")} | {"x": np.zeros(3)},
            "D116",
        ),
        ({"train_images": np.zeros((6, 28), np.uint8)}, "D116"),
        ({"train_images": np.zeros((6, 28, 28, 28), np.uint8)}, "D116"),
        ({"train_images": np.zeros((6, 28, 28), np.float32)}, "D116"),
        ({"train_images": np.array([None] * 6, dtype=object)}, "D116"),
        ({"train_images": np.zeros((0, 28, 28), np.uint8), "train_labels": np.zeros((0, 1), int)}, "D115"),
        ({"train_labels": np.zeros((5, 1), int)}, "D116"),
        ({"train_labels": np.array([[-1]] * 6)}, "D116"),
        ({"train_labels": np.zeros((6, 2), int)}, "D116"),
        ({"train_labels": np.array(["a"] * 6)}, "D116"),
    ],
)
def test_D116_npz_of_another_form(tmp_path: Path, arrays: dict[str, Any], code: str) -> None:
    assert refused(npz(tmp_path / "x.npz", **arrays)).code == code


def test_D116_npz_with_pickled_labels_runs_nothing(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "canary",))

    path = npz(tmp_path / "x.npz", train_labels=np.array([Canary()] * 6, dtype=object))
    problem = refused(path)
    assert "pickled" in problem.problem
    assert not (tmp_path / "canary").exists()


def test_D116_npz_label_outside_the_classes(tmp_path: Path) -> None:
    problem = refused(npz(tmp_path / "x.npz"), classes=("only",))
    assert "train_labels row 1" in problem.place


def test_D103_npz_cut_anywhere(tmp_path: Path) -> None:
    data = npz(tmp_path / "x.npz").read_bytes()
    for cut in range(0, len(data), len(data) // 20 + 1):
        (tmp_path / "cut.npz").write_bytes(data[:cut])
        assert refused(tmp_path / "cut.npz").code in {"D116", "D103", "D114"}


def test_D103_npz_with_flipped_bits(tmp_path: Path) -> None:
    data = bytearray(npz(tmp_path / "x.npz").read_bytes())
    config = DataConfig()
    for position in range(100, len(data), len(data) // 25):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            dataset = opened(tmp_path / "bad.npz")
            assert all(decode(dataset, r, config).pixels.shape == (28, 28) for r in dataset.records)
        except DataError:
            continue


def test_D110_npz_whose_header_lies_about_its_size(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 4000, 4000)})
    path = npz(tmp_path / "x.npz", train_images=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", out.getvalue() + bytes(100))
    problem = refused(path)
    assert problem.code == "D116"
    assert "size" in problem.problem


# Real data


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
