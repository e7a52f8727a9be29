"""A bundle is written, loads, and answers the same for every way of giving it an image."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import metrics, parts

import medloom
from medloom.data.phantom import golden_images
from medloom.data.preprocess import Preprocess
from medloom.deployment.bundle import load, write_bundle
from medloom.deployment.runtime import MAX_BATCH
from medloom.errors import DataError, ModelError, ResourceError
from medloom.evaluation.predictions import probabilities
from medloom.files import sweep_orphans


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for k, pixels in enumerate(golden_images(9, 48, 3)):
        made.append(folder / f"{k}.png")
        Image.fromarray(pixels).save(made[-1])
    return made


def test_a_bundle_holds_its_five_files_and_no_pickle(original: Path) -> None:
    names = {entry.name for entry in original.iterdir()}
    assert names == {"model.json", "model.safetensors", "model.onnx", "golden.npz", "CARD.md"}
    with np.load(original / "golden.npz", allow_pickle=False) as golden:
        assert golden["images"].dtype == np.uint8
        assert golden["logits"].dtype == np.float32


def test_path_bytes_and_array_give_one_answer(original: Path, images: list[Path]) -> None:
    bundle = medloom.load(original)
    answers = [
        bundle.predict(images),
        bundle.predict([path.read_bytes() for path in images]),
        bundle.predict([np.asarray(Image.open(path)) for path in images]),
        bundle.predict([np.asarray(Image.open(path).convert("RGB")) for path in images]),
    ]
    for other in answers[1:]:
        assert [a.logits for a in other] == [a.logits for a in answers[0]]
    assert [a.id for a in answers[0]] == [str(path) for path in images]
    assert answers[1][3].id == "image 3"


def test_a_single_image_needs_no_list(original: Path, images: list[Path]) -> None:
    bundle = load(original)
    one = bundle.predict(images[0])
    assert len(one) == 1
    assert bundle.predict(np.asarray(Image.open(images[0])))[0].logits == one[0].logits


def test_decision_follows_the_frozen_threshold(original: Path, images: list[Path]) -> None:
    bundle = load(original)
    threshold = bundle.document["operating_point"]["points"][0]["threshold"]
    seen = set()
    for answer in bundle.predict(images):
        z = np.array([list(answer.logits.values())])
        assert list(answer.probabilities.values()) == pytest.approx(probabilities(z, False, 1.5)[0], abs=1e-12)
        positive = answer.probabilities["PNEUMONIA"] >= threshold
        assert (answer.label, answer.decision) == (("PNEUMONIA", "positive") if positive else ("NORMAL", "negative"))
        assert answer.threshold == threshold
        seen.add(answer.label)
    edge = bundle.pipeline.answer(["edge"], np.array([[0.0, 1.5 * np.log(threshold / (1 - threshold)) + 1e-6]]))
    assert edge[0].decision == "positive"


def test_sixteen_bit_arrays_are_scaled_by_their_depth(original: Path, images: list[Path]) -> None:
    bundle = load(original)
    grey = np.asarray(Image.open(images[0]))
    deep = bundle.predict(grey.astype(np.uint16) * 257)[0]
    assert deep.probabilities["PNEUMONIA"] == pytest.approx(
        bundle.predict(grey)[0].probabilities["PNEUMONIA"], abs=5e-3
    )


def test_without_operating_point_there_is_a_probability_and_no_decision(tmp_path: Path, images: list[Path]) -> None:
    bundle = load(write_bundle(tmp_path / "b", **parts(operating_point=None)))
    answer = bundle.predict(images[:1])[0]
    assert (answer.label, answer.decision, answer.threshold) == (None, "no operating point", None)
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_many_labels_are_decided_each_for_itself(tmp_path: Path, images: list[Path]) -> None:
    bundle = load(write_bundle(tmp_path / "b", **parts(task="multi_label")))
    cut = bundle.pipeline.thresholds
    assert set(cut) == {"PNEUMONIA"}  # NORMAL has no operating point, so it is never announced
    for answer in bundle.predict(images):
        assert answer.label == ("PNEUMONIA" if answer.probabilities["PNEUMONIA"] >= cut["PNEUMONIA"] else "")


def test_flip_average_is_part_of_the_answer(tmp_path: Path, images: list[Path]) -> None:
    made = parts()
    plain = load(write_bundle(tmp_path / "plain", **made))
    grey = [np.asarray(Image.open(path)) for path in images]
    both = np.array([list(a.logits.values()) for a in plain.predict(grey)])
    both += np.array([list(a.logits.values()) for a in plain.predict([g[:, ::-1] for g in grey])])
    golden = made["golden_images"]
    made["golden_logits"] = np.mean(
        [
            [list(a.logits.values()) for a in plain.predict(golden)],
            [list(a.logits.values()) for a in plain.predict([g[:, ::-1] for g in golden])],
        ],
        axis=0,
    )
    flipped = load(write_bundle(tmp_path / "flipped", **made, flip_average=True))
    found = np.array([list(a.logits.values()) for a in flipped.predict(grey)])
    assert found == pytest.approx(both / 2, abs=2e-2)  # resizing rounds a mirrored image otherwise, by a level at most


def test_run_directory_stands_for_its_bundle(original: Path) -> None:
    assert load(original.parent).hash == load(original).hash == load(original / "model.json").hash


def test_card_says_what_it_is_not_and_gives_every_number_its_interval(original: Path) -> None:
    card = (original / "CARD.md").read_text()
    assert "Research software, not a medical device" in card
    assert "## Intended use" in card
    assert "## Limits" in card
    test = metrics()["splits"]["test"]
    auc = test["metrics"]["auc"]
    row = next(line for line in card.split("### Test")[1].splitlines() if line.startswith("| auc |"))
    assert f"{auc['value']:.4g} | {auc['low']:.4g} to {auc['high']:.4g} | {auc['n']}" in row
    assert row.endswith(f"| {auc['patients']} | 0.5 |")
    sensitivity = test["operating_points"][0]["metrics"]["sensitivity"]["value"]
    assert f"| sensitivity of PNEUMONIA at the threshold | {sensitivity:.4g}" in card
    of_validation = card.split("### Validation")[1].split("###")[0]
    assert "not estimable" in of_validation  # it has one class only, so no AUC


def test_card_makes_names_harmless(tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "b", **parts(name="<script>alert(1)</script> | [x](http://e)"))
    card = (written / "CARD.md").read_text()
    assert "<script>" not in card.replace("\\<", "")
    assert "\\[x\\]" in card


def test_writing_twice_gives_the_same_bytes(original: Path, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again", **parts())
    for entry in original.iterdir():
        assert (again / entry.name).read_bytes() == entry.read_bytes()


def test_answer_does_not_depend_on_the_batch(original: Path, images: list[Path]) -> None:
    bundle = load(original)
    many = images * (MAX_BATCH // len(images) + 2)
    expected = [list(a.logits.values()) for a in bundle.predict(many, batch_size=1)]
    for batch in (2, 7, 32, 10_000):
        found = [list(a.logits.values()) for a in bundle.predict(many, batch_size=batch)]
        assert np.abs(np.array(found) - np.array(expected)).max() < 1e-5


def test_X603_another_size_or_channel_count_is_refused_by_name(original: Path) -> None:
    runtime = load(original).pipeline.runtime
    for shape in [(1, 1, 24, 32), (1, 3, 32, 24), (1, 32, 24), (2, 1, 32, 25)]:
        with pytest.raises(DataError, match=r"error\[X603\].*batch, 1, 32, 24"):
            runtime.logits(np.zeros(shape, dtype=np.float32))
    for batch in (0, 1, 2, 7, 32, MAX_BATCH + 1):
        assert runtime.logits(np.zeros((batch, 1, 32, 24), dtype=np.float32)).shape == (batch, 2)


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((20, 20), np.float64), "D107"),
        (np.zeros((20, 20, 4), np.uint8), "D107"),
        (np.zeros((4, 20, 20), np.uint8), "D107"),
        (np.full((20, 20), 7, np.uint8), "D111"),
        (np.arange(400, dtype=np.uint16).reshape(2, 200), "D112"),
        (np.zeros((0, 5), np.uint8), "D112"),
        (np.broadcast_to(np.uint8(3), (9000, 9000)), "D110"),
    ],
)
def test_arrays_that_are_no_picture_are_refused_in_their_row(original: Path, array: np.ndarray, code: str) -> None:
    good = golden_images(1, 48, 3)[0]
    before, bad, after = load(original).predict([good, array, good])
    assert bad.error == code
    assert bad.decision == "refused"
    assert bad.label is None
    assert before.logits == after.logits


def test_bad_files_do_not_stop_the_others(original: Path, images: list[Path], tmp_path: Path) -> None:
    empty, text, missing = tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.png"
    empty.write_bytes(b"")
    text.write_text("<html>no image</html>")
    answers = load(original).predict([empty, images[0], text, missing, images[1], b"", b"junk"])
    assert [a.error for a in answers] == ["D101", None, "D102", "D114", None, "D101", "D102"]


def test_X607_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    made = parts()
    wrong = made | {"golden_logits": made["golden_logits"] + 1}
    with pytest.raises(ModelError, match="C507"):
        write_bundle(tmp_path / "b", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_X607_a_failed_write_keeps_the_old_bundle_and_a_good_one_replaces_it(bundle: Path) -> None:
    before = load(bundle).hash
    made = parts()
    with pytest.raises(ModelError):
        write_bundle(bundle, **(made | {"golden_logits": made["golden_logits"] + 1}))
    assert load(bundle).hash == before
    write_bundle(bundle, **(made | {"name": "second"}))
    assert load(bundle).name == "second"
    assert [entry.name for entry in bundle.parent.iterdir()] == ["bundle"]


_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import tiny_bundle, medloom.deployment.bundle as bundle, medloom.deployment.bundle_folder as folder
real, count = folder.write_bytes, [0]
def dying(path, data):
    count[0] += 1
    if count[0] == {step}:
        path.write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, data)
folder.write_bytes = dying
bundle.load = lambda stage: os.kill(os.getpid(), signal.SIGKILL)
bundle.write_bundle({target!r}, **tiny_bundle.parts(name="second"))
"""


@pytest.mark.parametrize("step", [1, 3, 99])
def test_X607_killed_in_the_middle_the_old_bundle_answers(bundle: Path, step: int) -> None:
    before = load(bundle).hash
    code = _KILLED.format(tests=str(Path(__file__).parent), target=str(bundle), step=step)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -9, done.stderr
    assert load(bundle).hash == before
    assert len(list(bundle.parent.iterdir())) == 2
    sweep_orphans(bundle.parent)
    assert [entry.name for entry in bundle.parent.iterdir()] == ["bundle"]


def test_T404_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[1]); import tiny_bundle; "
        "from medloom.deployment.bundle import write_bundle; from medloom.errors import ResourceError\n"
        "made = tiny_bundle.parts()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "try:\n    write_bundle(sys.argv[2], **made)\nexcept ResourceError as problem:\n    print(problem.code)"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "b")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.stdout == "T404\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_T405_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"error\[T405\]"):
        write_bundle(tmp_path / "file" / "b", **parts())


def test_C508_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    made = parts()
    for value in (np.nan, np.inf, 0.0):
        weights = {name: np.full_like(w, value) for name, w in made["weights"].items()}
        with pytest.raises(ModelError, match="C508"):
            write_bundle(tmp_path / "b", **(made | {"weights": weights}))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("channels", ["grey", "replicate", "pseudocolor", "rgb"])
def test_every_channel_rule_survives_the_round_trip(tmp_path: Path, images: list[Path], channels: str) -> None:
    width = 1 if channels == "grey" else 3
    rule = Preprocess(size=(24, 40), resize="pad", channels=channels, mean=(0.4,) * width, std=(0.3,) * width)  # type: ignore[arg-type]
    bundle = load(write_bundle(tmp_path / "b", **parts(rule)))
    assert bundle.preprocess == rule
    assert json.loads((tmp_path / "b" / "model.json").read_text())["preprocess"] == rule.as_dict()
    assert bundle.predict(io.BytesIO(images[0].read_bytes()).getvalue())[0].error is None


def test_decoding_rules_of_training_hold_when_serving(tmp_path: Path) -> None:
    first, second = (Image.fromarray(p) for p in golden_images(2, 48, 3))
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    plain = load(write_bundle(tmp_path / "plain", **parts()))
    assert plain.predict(tmp_path / "two.tif")[0].error == "D109"
    rules = {"frames": "first", "max_megapixels": 0.0035}
    lenient = load(write_bundle(tmp_path / "lenient", **parts(decoding=rules)))
    assert lenient.predict(tmp_path / "two.tif")[0].logits == plain.predict(np.asarray(first))[0].logits
    assert lenient.predict(np.asarray(first.resize((60, 60))))[0].error == "D110"
