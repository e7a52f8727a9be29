"""Are our networks as fast as what they are made of? Each against peers, in one run, turn by turn.

    python benchmarks/models.py

``vit_small``: our ViT-S/16 against timm's and MONAI's (once as it is, once with the fused attention that its blocks
have and its ViT does not switch on), equal in size. ``hatr_resnet50``: against timm's ResNet-50 followed by a timm ViT
that is as wide and deep, on as many tokens; what HATR does between the two costs extra. ``hybrid_rr_vit``: against
itself with the softmax written out, by ``models_rr_vit.py``.

A turn runs every side once, in an order that is drawn anew; ratios (peer over ours, in seconds) are taken inside a
turn, because other work on the machine then falls on all. Reported are the median ratio with its 95 % interval from
order statistics, wall time and CPU time of the process; the goal is for the wall time against the fastest peer.
Answering is one batch in inference mode; training is forward, cross-entropy, backward and a fused AdamW step, all in
the memory layout and the autocast that our loop uses.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from medloom.files import write_json
from medloom.models.registry import create_model
from medloom.models.timm_networks import load_timm
from medloom.training.precision import MEMORY_FORMAT, autocast
from models_rr_vit import CASES, compare, machine

SIZE, CLASSES = 224, 2
KINDS = ("answering", "training")
GOALS = {"vit_small": 0.97, "hatr_resnet50": 0.95}
_CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*GOALS, "hybrid_rr_vit"], choices=[*GOALS, "hybrid_rr_vit"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=21, help="turns that count; one before them warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "models.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = machine(os.getloadavg()[0])
    results: dict[str, Any] = {}
    for name in arguments.models:
        results[name] = {}
        for case in CASES if name == "hybrid_rr_vit" else (f"{k}_{p}" for k in KINDS for p in arguments.precision):
            if name == "hybrid_rr_vit":
                results[name][case] = compare(case, repeats=arguments.repeats)
            else:
                results[name][case] = measure(name, *case.split("_"), arguments.batch, arguments.repeats)
            print(name, case, json.dumps(results[name][case]), flush=True)
    write_json(
        arguments.out,
        {
            "benchmark": "models",
            "question": "speed of our networks over that of peers of the same size; 1 is equal, more is faster",
            "size": SIZE,
            "batch": arguments.batch,
            "repeats": arguments.repeats,
            "results": results,
            "machine": {**where, "load_after": round(os.getloadavg()[0], 2)},
        },
    )


def measure(name: str, kind: str, precision: str, batch: int, repeats: int) -> dict[str, Any]:
    """All sides of one case, turn by turn."""
    torch.manual_seed(0)
    x_BCHW = torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=MEMORY_FORMAT)
    work = answerer if kind == "answering" else trainer
    steps = {
        side: work(network.to(memory_format=MEMORY_FORMAT), x_BCHW, precision)  # type: ignore[call-overload]
        for side, network in SIDES[name]().items()
    }
    rng = np.random.default_rng(0)
    turns = [turn(steps, rng) for _ in range(repeats + 1)][1:]
    medians = {side: float(np.median([t[side]["wall"] for t in turns])) for side in steps}
    fastest = min((side for side in steps if side != "ours"), key=lambda side: medians[side])
    return {
        "seconds": {side: round(value, 4) for side, value in medians.items()},
        "fastest_peer": fastest,
        "goal": GOALS[name],
        "ratio": ratio(turns, fastest, "wall"),
        "all": {
            side: {clock: ratio(turns, side, clock) for clock in ("wall", "cpu")} for side in steps if side != "ours"
        },
    }


def turn(steps: dict[str, Callable[[], None]], rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Seconds of every side, once each."""
    seconds = {}
    for side in rng.permutation(sorted(steps)).tolist():
        wall, cpu = time.perf_counter(), time.process_time()
        steps[side]()
        seconds[side] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return seconds


def ratio(turns: list[dict[str, dict[str, float]]], peer: str, clock: str) -> dict[str, float]:
    """Median over the turns of how many times as fast ours is as the peer, with bounds."""
    values = np.sort([t[peer][clock] / t["ours"][clock] for t in turns])
    low, high = median_ranks(len(values))
    return {
        key: round(float(v), 4)
        for key, v in (("median", np.median(values)), ("low", values[low]), ("high", values[high]))
    }


def median_ranks(n: int, confidence: float = 0.95) -> tuple[int, int]:
    """Positions in n sorted values between which the true median lies with at least this confidence.

    With fewer than six values no two of them are enough; the outermost are then given.
    """
    low = max(int(binom.ppf((1 - confidence) / 2, n, 0.5)) - 1, 0)
    return low, n - 1 - low


def answerer(network: nn.Module, x_BCHW: Tensor, precision: str) -> Callable[[], None]:
    """A function that answers the images once."""
    network.eval()

    def answer() -> None:
        with torch.inference_mode(), autocast(_CPU, "bf16" if precision == "bf16" else "off"):
            logits(network, x_BCHW)

    return answer


def trainer(network: nn.Module, x_BCHW: Tensor, precision: str) -> Callable[[], None]:
    """A function that takes one training step."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    target_B = torch.arange(len(x_BCHW)) % CLASSES

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(_CPU, "bf16" if precision == "bf16" else "off"):
            logits_BK = logits(network, x_BCHW)
        nn.functional.cross_entropy(logits_BK.float(), target_B).backward()
        optimizer.step()

    return step


def logits(network: nn.Module, x_BCHW: Tensor) -> Tensor:
    """MONAI's ViT gives its hidden states too."""
    out = network(x_BCHW)
    return out[0] if isinstance(out, tuple) else out


def vision_transformers() -> dict[str, nn.Module]:
    """ViT-S/16 from four sources."""
    from monai.networks.nets import ViT

    def monai(fused: bool) -> nn.Module:
        network = ViT(
            in_channels=3,
            img_size=SIZE,
            patch_size=16,
            hidden_size=384,
            mlp_dim=1536,
            num_layers=12,
            num_heads=6,
            classification=True,
            num_classes=CLASSES,
            spatial_dims=2,
            qkv_bias=True,
            post_activation=None,
        )
        for block in network.blocks:
            block.attn.use_flash_attention = fused
        return network

    return {
        "ours": create_model("vit_small", num_classes=CLASSES),
        "timm": load_timm().create_model("vit_small_patch16_224", num_classes=CLASSES),
        "monai": monai(fused=False),
        "monai_fused": monai(fused=True),
    }


class TrunkAndTransformer(nn.Module):
    """timm's ResNet-50, and timm's ViT on 45 cells of its 7x7 map: the tokens of HATR's two scales, 36 and 9."""

    def __init__(self) -> None:
        super().__init__()
        timm = load_timm()
        from timm.models.vision_transformer import VisionTransformer

        self.trunk = timm.create_model("resnet50", num_classes=0, global_pool="")
        self.transformer = VisionTransformer(
            img_size=(5, 9),
            patch_size=1,
            in_chans=2048,
            embed_dim=512,
            depth=4,
            num_heads=8,
            num_classes=CLASSES,
            pos_drop_rate=0.1,
            proj_drop_rate=0.1,
            drop_path_rate=0.1,
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, 3, 224, 224) -> (B, K)``."""
        return self.transformer(self.trunk(x_BCHW).flatten(2)[..., :45].unflatten(2, (5, 9)))


def hatr_and_its_parts() -> dict[str, nn.Module]:
    """HATR-ResNet-50, and what it would be without its refinement."""
    return {"ours": create_model("hatr_resnet50", num_classes=CLASSES), "timm": TrunkAndTransformer()}


SIDES: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "vit_small": vision_transformers,
    "hatr_resnet50": hatr_and_its_parts,
}


if __name__ == "__main__":
    main()
