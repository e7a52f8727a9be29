"""compare from end to end: with made-up children for what may go wrong, and (long) with real ones on phantoms."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from medloom.data.phantom import write_phantom
from medloom.errors import UsageError
from medloom.workflows import compare as verb
from medloom.workflows import compare_run
from medloom.workflows import environment as machine
from medloom.workflows.compare import compare
from medloom.workflows.compare_run import Ended

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
from compared_runs import change, made

Run = Callable[..., subprocess.CompletedProcess[str]]
COST = {"seconds_per_step": 0.1, "seconds_per_scored_image": 0.01, "peak_memory": 1 << 29, "parameters": 5, "macs": 7}
RECIPE = {
    "name": "tiny",
    "data": {"patient": "column:patient", "site": "column:site", "min_val_per_class": 5, "accept": ["D124"]},
    "preprocess": {"size": 32, "channels": "grey", "statistics": "half"},
    "model": {"name": "conv2d"},
    "train": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "threads": 1, "amp": "off"},
    "evaluation": {"resamples": 100},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_patients=60, size=32, seed=1)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


class Children:
    """Instead of processes: what was asked of them, and what they leave behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: list[tuple[str, bool]] = []
        self.trials = 0
        self.failing: dict[str, str] = {}
        self.impossible: dict[str, str] = {}
        self.code: int | None = None

    def __call__(self, arguments: Sequence[str], *_: Any) -> Ended:
        task, text = arguments
        request = json.loads(text)
        if task == "trial":
            self.trials += 1
            problem = self.impossible.get(request["recipe"]["model"]["name"])
            return Ended(self.code or 4, "", problem) if problem else Ended(0, json.dumps(COST), None)
        if task == "train":
            return self._train(request["recipe"], Path(request["out"]), request["resume"])
        return Ended(1, "", "error[X001] not asked for here")

    def _train(self, wanted: dict[str, Any], out: Path, resume: bool) -> Ended:
        name = wanted["model"]["name"]
        self.trained.append((f"{name} {wanted['train']['seed']}", resume))
        if name in self.failing:
            out.mkdir(parents=True, exist_ok=True)
            (out / "recipe.yaml").write_text(yaml.safe_dump(wanted))
            return Ended(self.code or 6, "", self.failing[name])
        if out.exists():
            shutil.rmtree(out)
        run = made(
            self.folder / str(len(self.trained) + len(list(self.folder.glob("*")))),
            name,
            wanted["train"]["seed"],
            draw=len(self.trained),
        )
        change(run, **{"train.max_steps": wanted["train"]["max_steps"]})
        shutil.copytree(run.root, out)
        (out / "report.html").write_text("x")
        return Ended(0, "{}", None)


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    found = Children(tmp_path / "made")
    monkeypatch.setattr(compare_run, "in_process", found)
    monkeypatch.setattr(verb, "in_process", found)
    return found


def _compare(recipe: Path, data: Path, models: str = "conv2d,resnet18", **more: Any) -> Any:
    return compare(recipe=recipe, models=[models], data=data, out=recipe.parent / "c", **more)


def test_a_failing_run_is_a_marked_row_and_the_rest_goes_on(recipe: Path, data: Path, children: Children) -> None:
    children.failing["resnet18"] = "error[T406] step 3: the loss is not finite. Lower train.learning_rate."
    done = _compare(recipe, data, "resnet18,conv2d,vit_tiny")
    assert [name for name, _ in children.trained] == ["resnet18 0", "conv2d 0", "vit_tiny 0"]
    assert done.exit_code == 6
    page = (recipe.parent / "c" / "leaderboard.html").read_text()
    assert "1 run failed" in page
    assert "error[T406] step 3" in page
    assert "held against conv2d instead" in done.text()
    assert done.text().splitlines()[-1].startswith("open ")


def test_what_is_finished_is_not_run_again_and_what_failed_resumes(
    recipe: Path, data: Path, children: Children
) -> None:
    children.failing["resnet18"] = "error[T408] gone."
    _compare(recipe, data)
    children.failing.clear()
    children.trained.clear()
    done = _compare(recipe, data, seeds="0,1")
    assert children.trained == [("resnet18 0", True), ("conv2d 1", False), ("resnet18 1", False)]
    assert done.exit_code == 0
    assert children.trials == 2  # one for each model, remembered for the other seed
    children.trained.clear()
    _compare(recipe, data, seeds="0,1")
    assert children.trained == []
    _compare(recipe, data, overrides=["train.max_steps=7"])
    assert len(children.trained) == 2  # another recipe is another run


def test_a_model_that_cannot_even_start_is_not_run(recipe: Path, data: Path, children: Children) -> None:
    children.impossible["resnet18"] = "error[C511] model resnet18: an image of 32 pixels does not pass."
    done = _compare(recipe, data)
    assert [name for name, _ in children.trained] == ["conv2d 0"]
    assert done.exit_code == 4
    assert "C511" in (recipe.parent / "c" / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("code", "error"),
    [(6, "error[D124] split val: few."), (2, "error[T415] batch: one."), (2, "error[T411] x."), (1, "error[X001] x.")],
)
@pytest.mark.parametrize("when", ["estimate", "run"])
def test_the_exit_code_is_that_of_the_process_that_failed(
    when: str, code: int, error: str, recipe: Path, data: Path, children: Children
) -> None:
    children.code = code
    (children.failing if when == "run" else children.impossible)["conv2d"] = error
    assert _compare(recipe, data, "conv2d").exit_code == code
    children.code = -9
    assert _compare(recipe, data, "conv2d").exit_code == 7


def test_T407_a_process_that_was_killed_is_taken_for_want_of_memory(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("starting\n")
    assert "T407" in str(compare_run._error(-signal.SIGKILL, log, 0))
    log.write_text("a warning\nerror[D117] train: shared.\n")
    assert compare_run._error(3, log, 0) == "error[D117] train: shared."
    assert "it said nothing" in str(compare_run._error(3, log, log.stat().st_size))
    assert compare_run._error(0, log, 0) is None


def test_a_dry_run_estimates_and_runs_nothing(recipe: Path, data: Path, children: Children) -> None:
    done = _compare(recipe, data, dry_run=True, seeds="0,1,2")
    assert children.trained == []
    text = done.text()
    assert "0.50" in text  # GiB
    # 84 training images in 6 steps, 2 epochs; 16 validation images three times, 32 test images; three seeds.
    counts = [c["seconds"] for c in done.values["estimates"].values()]
    assert counts[0] == pytest.approx(20 + 12 * 0.1 + 80 * 0.01, abs=0.6)
    assert "2 min" in text
    assert not (recipe.parent / "c" / "leaderboard.html").exists()


def test_time_that_is_up_starts_no_run_and_says_what_remains(recipe: Path, data: Path, children: Children) -> None:
    _compare(recipe, data, "conv2d")
    children.trained.clear()
    done = _compare(recipe, data, "conv2d,vit_tiny", max_minutes=0.0)
    assert children.trained == []
    assert "1 run to go" in done.text()
    assert "not run yet" in (recipe.parent / "c" / "leaderboard.html").read_text()


def test_D133_runs_on_other_images_are_refused_before_anything_runs(
    recipe: Path, data: Path, children: Children, tmp_path: Path
) -> None:
    one = made(tmp_path / "given", "conv2d")
    other = made(tmp_path / "given", "vit_tiny", sizes={"train": (40, 60), "val": (30, 30), "test": (60, 79)})
    with pytest.raises(Exception, match="D133"):
        compare([one.root, other.root, recipe], data=data, out=tmp_path / "c")
    assert children.trained == []


def test_finished_runs_alone_need_no_data(tmp_path: Path, children: Children) -> None:
    runs = [made(tmp_path / "given", n, s, draw=k).root for k, n in enumerate(("conv2d", "vit_tiny")) for s in (0, 1)]
    done = compare(runs, out=tmp_path / "c", baseline="vit_tiny")
    content = json.loads((tmp_path / "c" / "leaderboard.json").read_text())
    assert content["baseline"] == "vit_tiny"
    assert [r["seeds"] for r in content["rows"]] == [[0, 1], [0, 1]]
    assert done.exit_code == 0
    assert children.trained == []


def test_times_are_remembered_for_the_processor_that_took_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, timed = made(tmp_path / "given", "conv2d"), []
    run.bundle.mkdir(exist_ok=True)
    (run.bundle / "model.json").write_text(json.dumps({"architecture": {}, "hashes": {"document": "d"}}))

    def child(arguments: Sequence[str], *_: Any) -> Ended:
        timed.append(arguments[0])
        cost = {"parameters": 1, "macs": 1}
        middle = {"median_ms": 1.0, "images_per_second": 1.0}
        speed = {"threads": 1, "load": 0.0, "batch 1": middle, "batch 16": middle}
        return Ended(0, json.dumps([cost] if arguments[0] == "count" else speed), None)

    monkeypatch.setattr(verb, "in_process", child)
    for cpu, times in (("one", 1), ("one", 1), ("another", 2)):
        monkeypatch.setattr(machine, "cpu_name", lambda cpu=cpu: cpu)
        compare([run.root], out=tmp_path / "c")
        assert timed == ["count", "speed"] * times


def test_U232_unknown_baseline_or_comparison(recipe: Path, data: Path, children: Children) -> None:
    for more in ({"baseline": "resnet19"}, {"against": "everybody"}):
        with pytest.raises(UsageError, match="U232"):
            _compare(recipe, data, **more)
    assert children.trials == 0


def test_T412_a_folder_has_one_comparison_at_a_time(recipe: Path, data: Path, children: Children) -> None:
    from medloom.files import RunDirectory
    from medloom.workflows.run_lock import exclusive

    with exclusive(RunDirectory(recipe.parent / "c")), pytest.raises(UsageError, match="T412"):
        _compare(recipe, data)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_two_recipes_and_two_seeds_killed_in_the_middle_and_resumed(tmp_path: Path, data: Path, medloom: Run) -> None:
    vit = {"name": "vit", "options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}}
    broken = {"name": "conv2d", "options": {"nonsense": 1}}
    for name, model in (("one", RECIPE["model"]), ("two", vit), ("broken", broken)):
        values = {**RECIPE, "name": name, "model": model, "train": {**RECIPE["train"], "epochs": 6, "save_steps": 1}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "c"
    arguments = ["compare", *(str(tmp_path / f"{n}.yaml") for n in ("one", "two", "broken")), "--data", str(data)]
    arguments += ["--seeds", "0,1", "--out", str(out), "--threads", "1"]
    command = [sys.executable, "-m", "medloom.cli", *arguments]

    def until(true: Callable[[], bool]) -> None:
        limit = time.monotonic() + 240
        while not true():
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.05)

    def text(pattern: str) -> str:
        return "".join(path.read_text() for path in out.glob(pattern))

    for ending, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        log, begun = tmp_path / f"{ending}.log", text("runs/*/sessions.jsonl").count('"event": "')
        with log.open("wb") as sink:
            process = subprocess.Popen(command, stderr=sink, stdout=sink, env=_environment())
        until(lambda: text("runs/*/sessions.jsonl").count('"event": "') > begun)  # noqa: B023
        process.send_signal(ending)
        assert process.wait(120) == code, log.read_text()
        # Also the child of a comparison that was killed outright saves and stops.
        until(lambda: text("runs/*/sessions.jsonl").count('"stopped": "SIGTERM"') == (1 if code == -9 else 2))  # noqa: B023
    done = medloom(*arguments, "--baseline", "two", timeout=700)
    assert done.returncode == 2, done.stderr  # the broken recipe's
    content = json.loads((out / "leaderboard.json").read_text())
    rows = {r["label"]: r for r in content["rows"]}
    assert rows["one"]["seeds"] == rows["two"]["seeds"] == [0, 1]
    assert "U207" in rows["broken"]["failed"][0]["error"]
    assert rows["one"]["macs"] > rows["two"]["macs"] > 0
    assert rows["one"]["inference"]["batch 16"]["images_per_second"] > 0
    assert rows["one"]["inference"]["threads"] == 1
    assert rows["one"]["training_images_per_second"] > 0
    assert content["test_scorings"] == 4
    assert not [r for r in content["runs"] if r["departures"]]
    again = medloom(*arguments, "--baseline", "two", "--json", timeout=700)
    assert json.loads(again.stdout)["content"]["rows"] == content["rows"]
