"""Tables to records: columns, encodings, labels, and the line that a refusal names."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import opened, refused, rows, table, tree

from medloom.data.tables import read_table


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
