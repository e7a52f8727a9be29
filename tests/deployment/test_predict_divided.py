"""``medloom predict`` in parts and over processes: every image has one answer, always the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ask_bundle import ask
from PIL import Image as PIL

from medloom.data.phantom import golden_images
from medloom.errors import DataError, MedloomError, UsageError
from medloom.workflows import answer_all as answer_all_module
from medloom.workflows.predict import predict
from medloom.workflows.shards import Shard, parse_shard


def figures(table: bytes) -> list[list[str]]:
    """Rows with numbers to nine digits: batches of other images may round otherwise."""

    def short(cell: str) -> str:
        try:
            return f"{float(cell):.9g}"
        except ValueError:
            return cell

    return [[short(cell) for cell in line.split(",")] for line in table.decode().splitlines()]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_parts_are_merged_into_the_table_of_one_machine(
    original: Path, many: Path, tmp_path: Path, whole: bytes, count: int
) -> None:
    out = tmp_path / "a.csv"
    told = [ask(original, many, out, shard=f"{k}/{count}") for k in range(count, 0, -1)]
    assert not out.exists()
    assert sum(done.values["images"] for done in told) == 12
    assert max(done.values["images"] for done in told) == -(-12 // count)  # as even as can be
    done = ask(original, many, out, merge=True)
    assert figures(out.read_bytes()) == figures(whole)
    assert done.values["images"] == 12
    assert done.values["refused"] == 1
    assert any(f"{count} parts" in line for line in done.lines)


def test_parts_of_a_json_table(original: Path, many: Path, tmp_path: Path) -> None:
    for k in (1, 2):
        ask(original, many, tmp_path / "a.json", shard=f"{k}/2")
    ask(original, many, tmp_path / "a.json", merge=True)
    assert len(json.loads((tmp_path / "a.json").read_text())["predictions"]) == 12


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "1/2/3", "a/b", "-1/2", ""])
def test_U248_no_part_of_a_whole(original: Path, many: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="U248"):
        parse_shard(text)
    if text:
        with pytest.raises(UsageError, match="U248"):
            ask(original, many, tmp_path / "a.csv", shard=text)


def test_U248_a_part_without_a_table_or_with_a_merge(original: Path, many: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="U248"):
        predict(original, [many], shard="1/2")
    with pytest.raises(UsageError, match="U248"):
        predict(original, [many], merge=True)
    with pytest.raises(UsageError, match="U248"):
        ask(original, many, tmp_path / "a.csv", shard="1/2", merge=True)


def test_U249_nothing_to_merge_or_two_divisions(original: Path, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    with pytest.raises(UsageError, match=r"U249.*no parts"):
        ask(original, many, out, merge=True)
    ask(original, many, out, shard="1/2")
    ask(original, many, out, shard="1/3")
    with pytest.raises(UsageError, match=r"U249.*of 2 and of 3"):
        ask(original, many, out, merge=True)


@pytest.fixture
def parts(original: Path, many: Path, tmp_path: Path) -> Path:
    for k in (1, 2):
        ask(original, many, tmp_path / "a.csv", shard=f"{k}/2")
    return tmp_path / "a.csv"


def spoil(what: str, table: Path, many: Path) -> None:
    one, two = (Shard(k, 2).file(table) for k in (1, 2))
    lines = two.read_bytes().splitlines(keepends=True)
    if what == "missing":
        two.unlink()
    elif what == "not finished":
        two.rename(two.with_name(f"{two.name}.part"))
    elif what == "a copy of the other":
        shutil.copy(one, two)
    elif what == "cut":
        two.write_bytes(b"".join(lines[:-1]) + lines[-1][:-9])
    elif what == "double":
        two.write_bytes(b"".join([*lines, lines[-1]]))
    elif what == "of the other part":
        two.write_bytes(b"".join([*lines, one.read_bytes().splitlines(keepends=True)[1].replace(b"[[0,", b"[[2,")]))
    elif what == "another model":
        two.write_bytes(two.read_bytes().replace(json.loads(lines[0])["model_hash"].encode(), b"0" * 64))
    elif what == "another runtime":
        two.write_bytes(two.read_bytes().replace(b"onnx float32", b"openvino int8"))
    elif what == "a new image":
        PIL.fromarray(golden_images(1, 40, 9)[0]).save(many / "5b.png")
    elif what == "an image that went":
        (many / "3.png").unlink()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "part 2 of 2 is missing"),
        ("not finished", "part 2 of 2 is missing or not finished"),
        ("a copy of the other", "not part 2 of 2"),
        ("cut", "no answer for 1 images"),
        ("double", "two answers for"),
        ("of the other part", "not of this part"),
        ("another model", "another model"),
        ("another runtime", "openvino int8 answered it"),
        ("a new image", "12 images, and now there are 13"),
        ("an image that went", "12 images, and now there are 11"),
    ],
)
def test_D135_parts_that_make_no_whole(original: Path, many: Path, parts: Path, what: str, said: str) -> None:
    spoil(what, parts, many)
    with pytest.raises(DataError, match=rf"D135.*{said}"):
        ask(original, many, parts, merge=True)
    assert not parts.exists()


def test_a_part_that_is_finished_is_not_answered_again(original: Path, many: Path, parts: Path) -> None:
    before = Shard(1, 2).file(parts).read_bytes()
    done = ask(original, many, parts, shard="1/2")
    assert any("6 of them were answered before" in line for line in done.lines)
    assert Shard(1, 2).file(parts).read_bytes() == before
    (many / "0.png").touch()  # another time of change: perhaps another image
    done = ask(original, many, parts, shard="1/2")
    assert not any("before" in line for line in done.lines)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_give_the_same_table(
    original: Path, many: Path, tmp_path: Path, whole: bytes, processes: int
) -> None:
    ask(original, many, tmp_path / "a.csv", batch_size=3, processes=processes)
    assert (tmp_path / "a.csv").read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "many", "whole.csv"]


def test_a_process_that_refuses_is_heard(
    bundle: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = answer_all_module.spread

    def later(*what: Any, **how: Any) -> Any:
        (bundle / "model.onnx").write_bytes(b"")  # after this process has opened it
        return real(*what, **how)

    monkeypatch.setattr(answer_all_module, "spread", later)
    with pytest.raises(MedloomError, match="C502") as caught:
        ask(bundle, many, tmp_path / "a.csv", batch_size=6, processes=2)
    assert caught.value.exit_code == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "many"]
