"""A bundle asked in a process of its own, where torch cannot be imported: what a hospital would get, answer by answer.

    python -m medloom.deployment.bundle_clean FOLDER

FOLDER holds ``job.json``; the answers are left beside it. Parity at export is judged on these, not on what the
exporting process, with all its libraries and threads, would have said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from medloom.errors import ExportError, MedloomError, again

BLOCKED = ("torch", "torchvision", "timm", "kornia", "nncf")
_NOISE_SEED = 0


class CleanAnswers:
    """What the other process said; files are read when they are asked for.

    Attributes:
        milliseconds: per image or window, by batch size.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        self.milliseconds: dict[str, float] = told["milliseconds"]
        self.threads: int = told["threads"]
        self.answers: list[tuple[int, dict[str, Any]]] = [(int(k), answer) for k, answer in told["answers"]]

    def case(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits ``(K, *S)`` on the grid of the model, and positions on the grid of the file, of one case."""
        with np.load(self._folder / f"case_{number}.npz", allow_pickle=False) as arrays:
            return arrays["logits"], arrays["positions"]

    def windows(self, batch: int) -> np.ndarray:
        """Logits of that many windows of :func:`noise` at once."""
        with np.load(self._folder / "windows.npz", allow_pickle=False) as arrays:
            return np.asarray(arrays[str(batch)])


@contextmanager
def ask(
    bundle: Path,
    runtime: str,
    sources: Sequence[Any],
    batches: Sequence[int],
    *,
    threads: int | None = None,
    timed: Sequence[int] = (1, 8),
) -> Iterator[CleanAnswers]:
    """Answers of a bundle to files and arrays, from a clean process; they are gone when the block ends.

    Args:
        sources: paths, lists of paths (a DICOM series) or arrays.
        batches: classes are asked in such batches, one after another and from the start again where images are few,
            then all that is left; masks case by case, and that many windows at once.
        timed: batch sizes whose time is measured.

    Raises:
        MedloomError: what the other process refused, with its code. ExportError: X602, it died.
    """
    with tempfile.TemporaryDirectory(prefix="medloom-clean-") as place:
        folder = Path(place)
        job = {
            "bundle": str(bundle.resolve()),
            "runtime": runtime,
            "threads": threads,
            "sources": [_stored(folder, number, source) for number, source in enumerate(sources)],
            "batches": list(batches),
            "timed": list(timed),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "medloom.deployment.bundle_clean", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if (folder / "refused.json").exists():
            raise again(json.loads((folder / "refused.json").read_text(encoding="utf-8")))
        if done.returncode or not (folder / "told.json").exists():
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise ExportError(
                "X602", bundle, f"a clean process cannot answer with it: {last[:200]}", "Report the model"
            )
        yield CleanAnswers(folder)


def noise(count: int, in_chans: int, size: Sequence[int]) -> np.ndarray:
    """Windows ``(B, C, *size)`` that both sides of the comparison draw alike."""
    return np.random.default_rng(_NOISE_SEED).normal(size=(count, in_chans, *size)).astype(np.float32)


def main(folder: Path) -> None:
    """Do the job that lies in ``folder``."""
    from medloom.deployment.bundle import Bundle, load

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sources = [_taken(folder, source) for source in job["sources"]]
    model = load(job["bundle"], threads=job["threads"], runtime=job["runtime"])
    runtime = model.pipeline.runtime
    answers: list[tuple[int, dict[str, Any]]] = []
    if isinstance(model, Bundle):
        places = cycle(range(len(sources)))
        for batch in (*job["batches"], len(sources) - sum(job["batches"])):
            chosen = list(islice(places, max(0, batch)))
            found = model.stream([sources[k] for k in chosen], batch_size=batch)
            answers += [(k, answer.as_dict()) for k, answer in zip(chosen, found, strict=True)]
    else:
        for number, source in enumerate(sources):
            case = model.pipeline.open(source, f"case {number}")
            logits_KS, positions = model.pipeline.logits(case), model.pipeline.positions(case)
            np.savez(folder / f"case_{number}.npz", logits=logits_KS, positions=positions)
        x_BCP = noise(max(job["batches"]), runtime.in_chans, runtime.size)
        tried = {str(batch): runtime.logits(x_BCP[:batch]) for batch in job["batches"]}
        np.savez(folder / "windows.npz", **tried)  # type: ignore[arg-type]
    milliseconds = runtime.latency(batches=job["timed"]) if job["timed"] else {}
    told = {"answers": answers, "milliseconds": milliseconds, "threads": runtime.threads}
    (folder / "told.json").write_text(json.dumps(told, allow_nan=True), encoding="utf-8")


def _stored(folder: Path, number: int, source: Any) -> Any:
    if isinstance(source, np.ndarray):
        name = f"array_{number}.npy"
        np.save(folder / name, source, allow_pickle=False)
        return {"array": name}
    if isinstance(source, str | Path):
        return str(Path(source).resolve())
    return [str(Path(each).resolve()) for each in source]


def _taken(folder: Path, source: Any) -> Any:
    if isinstance(source, dict):
        return np.load(folder / source["array"], allow_pickle=False)
    return Path(source) if isinstance(source, str) else [Path(each) for each in source]


if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(BLOCKED))  # type: ignore[arg-type]
    _folder = Path(sys.argv[1])
    try:
        main(_folder)
    except MedloomError as _problem:
        (_folder / "refused.json").write_text(json.dumps(_problem.as_dict()), encoding="utf-8")
        sys.exit(_problem.exit_code)
