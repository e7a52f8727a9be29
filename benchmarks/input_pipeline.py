"""Images per second fed to a model: MedLoom's cache and batched augmentation against torchvision's usual pipeline.

    python benchmarks/input_pipeline.py --data ../shared/data/chest_xray/train

Same files, same augmentation on every side (horizontal flip, rotation up to 10 degrees with bilinear interpolation,
brightness 10 percent, standardisation), same result: float32 (B, 3, H, W), batches of 32, shuffled. Measured:

- medloom: memory-mapped cache -> one table and one warp per image (OpenCV) -> standardised batch; also its torch path;
- torchvision: ImageFolder + transforms v2 + DataLoader as its documentation shows, which decodes in every epoch;
- torchvision, tensors: the same with the change to tensors first instead of last;
- torchvision, grey: on pictures again, with a loader of our own that keeps one channel until the end;
- kornia: its augmentations on batches of our cached pixels, so without any decoding.

Per core: the process is held to one CPU, one thread, no workers, and the CPU time that it used is counted, so that
other work on the machine does not enter (wall time is given too). The sides take turns in every repeat, and ratios are
taken inside a repeat. The first epoch of each side is not counted; the making of our cache happens before it, and its
time is given.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from medloom.config import AugmentConfig, DataConfig, PreprocessConfig
from medloom.data.augment import augment, augment_torch, backend, draw
from medloom.data.cache import DevicePixels, build_cache, finish, to_device
from medloom.data.preprocess import PAPER_MEAN, PAPER_STD, Preprocess
from medloom.data.records import Dataset, Record
from medloom.data.sampling import epoch_order
from medloom.files import write_json

BATCH = 32
PAPER = AugmentConfig(flip=0.5, rotate=10.0, brightness=0.1)
Epoch = Callable[[int], Iterator[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of images per class")
    parser.add_argument("--images", type=int, default=1500, help="evenly spaced images taken of it")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7, help="counted epochs of each side")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "input_pipeline.json")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder, dataset = link_subset(arguments.data.resolve(), Path(scratch) / "images", arguments.images)
        started = time.process_time()
        preprocess = Preprocess.from_config(PreprocessConfig(size=arguments.size))
        cache = build_cache(dataset, preprocess, DataConfig(), Path(scratch) / "cache", workers=1)
        cache_seconds = time.process_time() - started
        sides = {
            "medloom": ours(to_device(cache, "cpu"), preprocess, augment),
            "medloom, torch path": ours(to_device(cache, "cpu"), preprocess, augment_torch),
            "torchvision": torchvision_epochs(folder, arguments.size),
            "torchvision, tensors": torchvision_epochs(folder, arguments.size, tensors_first=True),
            "torchvision, grey": torchvision_epochs(folder, arguments.size, grey=True),
            "kornia on our cache": kornia_epochs(to_device(cache, "cpu"), preprocess),
        }
        speeds, wall = measure(sides, len(dataset), arguments.repeats)
        cache.close()
    result = {
        "benchmark": "input_pipeline",
        "question": "images per second of one core fed to a model, from the second epoch on",
        "command": f"python benchmarks/input_pipeline.py --data DATA --images {arguments.images} "
        f"--size {arguments.size} --repeats {arguments.repeats}",
        "data": {
            "name": "/".join(arguments.data.resolve().parts[-2:]),
            "images": len(dataset),
            "chosen": "evenly spaced over the sorted files of every class",
        },
        "setting": {
            "size": arguments.size,
            "batch_size": BATCH,
            "output": "float32 (B, 3, H, W), standardised",
            "augmentation": {"flip": PAPER.flip, "rotate": PAPER.rotate, "brightness": PAPER.brightness},
            "threads": 1,
            "workers": 0,
            "our_path": backend("cpu"),
        },
        "cache": {"seconds": round(cache_seconds, 2), "images_per_second": round(len(dataset) / cache_seconds)},
        "images_per_second": {name: summary(values) for name, values in speeds.items()},
        "images_per_second_by_the_clock": {name: summary(values) for name, values in wall.items()},
        "ratio_of_medloom_to": {
            name: summary(speeds["medloom"] / speeds[name])
            for name in speeds
            if name.startswith(("torchvision", "korn"))
        },
        "interval": "median, smallest and largest of the repeats; ratios are taken inside a repeat",
        "machine": machine() | {"load_before": round(load, 2)},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)
    for name, values in speeds.items():
        ratio = speeds["medloom"] / values
        spread = f"{np.median(ratio):5.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
        print(f"{name:24} {np.median(values):6.0f} images/s; medloom is {spread} times as fast")
    print(f"cache of {len(dataset)} images made once in {cache_seconds:.1f} s; wrote {arguments.out}")


def link_subset(source: Path, target: Path, count: int) -> tuple[Path, Dataset]:
    """A folder of links to evenly spaced images of every class, so that both sides read the very same files."""
    classes = sorted(p.name for p in source.iterdir() if p.is_dir())
    files = [(k, p) for k, name in enumerate(classes) for p in sorted((source / name).iterdir())]
    rows = np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).astype(int))
    records = []
    for k, path in (files[row] for row in rows):
        link = target / classes[k] / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
        name = f"{classes[k]}/{path.name}"
        records.append(Record(id=name, path=name, labels=(k,), split="train"))
    return target, Dataset(source.name, target, tuple(classes), tuple(records))


def ours(pixels: DevicePixels, preprocess: Preprocess, change: Callable[..., Tensor]) -> Epoch:
    labels = np.zeros(len(pixels.pixels), dtype=np.int64)

    def epoch(number: int) -> Iterator[Tensor]:
        order = epoch_order(labels, "none", 0, number)
        for step, start in enumerate(range(0, len(order), BATCH)):
            x_BCHW = pixels.gather(order[start : start + BATCH])
            draws = draw(PAPER, len(x_BCHW), (0, number, step))
            yield finish(change(x_BCHW, draws, PAPER), preprocess)

    return epoch


def torchvision_epochs(folder: Path, size: int, *, tensors_first: bool = False, grey: bool = False) -> Epoch:
    from medloom.models.timm_networks import load_timm

    load_timm()  # lets torchvision be imported beside a CPU build of torch (a matching pair takes its own path)
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    def one_channel(path: str) -> Image.Image:
        with Image.open(path) as picture:
            return picture.convert("L")

    changes = [
        v2.Resize((size, size)),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(10, interpolation=InterpolationMode.BILINEAR),
        v2.ColorJitter(brightness=0.1),
    ]
    transform = v2.Compose(
        [
            *([v2.ToImage(), *changes] if tensors_first else [*changes, v2.ToImage()]),
            v2.ToDtype(torch.float32, scale=True),
            *([v2.Lambda(lambda x_CHW: x_CHW.repeat(3, 1, 1))] if grey else []),
            v2.Normalize([PAPER_MEAN] * 3, [PAPER_STD] * 3),
        ]
    )
    images = ImageFolder(folder, transform, **({"loader": one_channel} if grey else {}))
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=0)

    def epoch(number: int) -> Iterator[Tensor]:
        torch.manual_seed(number)
        for x_BCHW, _ in loader:
            yield x_BCHW

    return epoch


def kornia_epochs(pixels: DevicePixels, preprocess: Preprocess) -> Epoch:
    from kornia import augmentation as K

    change = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomRotation(10.0, p=1.0),
        K.RandomBrightness((0.9, 1.1), p=1.0),
        data_keys=["input"],
    )
    labels = np.zeros(len(pixels.pixels), dtype=np.int64)

    def epoch(number: int) -> Iterator[Tensor]:
        torch.manual_seed(number)
        order = epoch_order(labels, "none", 0, number)
        for start in range(0, len(order), BATCH):
            x_BCHW = pixels.gather(order[start : start + BATCH]).float().div_(255)
            yield finish(change(x_BCHW), preprocess)

    return epoch


def measure(sides: dict[str, Epoch], n: int, repeats: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images per second of CPU time, and of the clock, of every counted epoch; the sides take turns."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, epoch in sides.items():
            clock, started = time.perf_counter(), time.process_time()
            seen = 0
            for x_BCHW in epoch(number):
                if x_BCHW.shape[1] != 3 or x_BCHW.dtype != torch.float32 or not x_BCHW.is_contiguous():
                    raise SystemExit(f"{name} feeds {x_BCHW.dtype} {tuple(x_BCHW.shape)}, not what was agreed")
                seen += len(x_BCHW)
            used, passed = time.process_time() - started, time.perf_counter() - clock
            if seen != n:
                raise SystemExit(f"{name} fed {seen} of {n} images")
            if number:
                speeds[name].append(n / used)
                wall[name].append(n / passed)
    return {k: np.array(v) for k, v in speeds.items()}, {k: np.array(v) for k, v in wall.items()}


def summary(values: np.ndarray) -> dict[str, Any]:
    digits = 0 if np.median(values) > 50 else 2
    low, middle, high = (round(float(v), digits) for v in (values.min(), np.median(values), values.max()))
    return {"value": middle, "low": low, "high": high, "repeats": len(values)}


def machine() -> dict[str, Any]:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    packages = ("torch", "torchvision", "kornia", "opencv-python-headless", "pillow", "numpy")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
