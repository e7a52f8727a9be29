"""timm's networks by name: the import that must not fail, our names for theirs, and refusals in our words.

Reference: Wightman, PyTorch image models, github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

from medloom.errors import ModelError, UsageError
from medloom.models.sizes import first_line, size_error

TIMM_NAMES = {
    "coatnet_0": "coatnet_0_224",
    "coatnet_1": "coatnet_1_224",
    "coatnet_2": "coatnet_2_224",
    "maxvit_tiny": "maxvit_tiny_tf_224",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "deit_small": "deit_small_patch16_224",
}
"""Our names of networks that timm calls otherwise; all other names are the same."""

_declared_operators: list[torch.library.Library] = []  # a library object that is collected takes its operators along


def load_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled part does not fit the installed torch.

    timm imports torchvision unconditionally, and torchvision's import fails on two operators that its compiled
    part should have declared (a wheel linked against CUDA beside a CPU build of torch, pytorch/vision #9077). Only
    that one error is cured, by declaring the two; a matching pair is never touched. In the cured state
    ``torchvision.io`` and ``torchvision.ops.nms`` stay unusable, and nothing here needs them.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as problem:
        if "torchvision::nms" not in str(problem):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared_operators.append(library)
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pass  # timm says itself what it lacks
    return importlib.import_module("timm")


def create_network(
    name: str, *, in_chans: int, image_size: tuple[int, int], pretrained: bool = False, **options: Any
) -> nn.Module:
    """A timm network by timm's name; networks that are built for one size are built for ``image_size``.

    Raises:
        UsageError: U206 unknown name, U207 option that this network does not have.
        ModelError: C511 impossible size, C512 no feature maps, C513 weights not to be had.
    """
    timm = load_timm()
    architecture, _, _ = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = (
            f"Did you mean {', '.join(near)}"
            if near
            else "python -c 'import timm; print(timm.list_models())' lists all"
        )
        raise UsageError("U206", f"timm/{name}", "timm has no such model", hint)
    if has_fixed_size(name) and image_size != native_size(name):
        options = {**options, "img_size": image_size}
    try:
        network = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **options)
    except TypeError as problem:
        if "img_size" in str(problem):
            remedy = f"Use {'x'.join(map(str, native_size(name)))}"
            raise size_error(f"timm/{name}", image_size, "does not fit: its size is fixed", remedy) from None
        raise UsageError("U207", f"timm/{name}", f"an option is not known there ({problem})", "Leave it out") from None
    except (AssertionError, ValueError, ZeroDivisionError) as problem:
        remedy = f"Use a multiple of 32, or {'x'.join(map(str, native_size(name)))}"
        raise size_error(f"timm/{name}", image_size, f"does not fit ({problem})", remedy) from None
    except (OSError, RuntimeError) as problem:
        if not pretrained and "img_size" in options:  # a table or window that comes out smaller than nothing
            raise size_error(f"timm/{name}", image_size, "does not fit", "Use a multiple of 32") from None
        if not pretrained:
            raise
        raise ModelError(
            "C513",
            f"timm/{name}",
            f"pretrained weights not to be had ({first_line(problem)})",
            "Check the connection, choose a timm name with weights, or train from scratch",
        ) from None
    if not hasattr(network, "forward_intermediates"):
        raise ModelError("C512", f"timm/{name}", "it offers no feature maps", "Choose another timm network")
    stride = max(info["reduction"] for info in network.feature_info)
    if has_fixed_size(name) and any(extent % stride for extent in image_size):
        # timm rounds windows and tables; some such sizes then pass, with windows of another size than was asked for.
        raise size_error(f"timm/{name}", image_size, "does not divide into its cells", f"Use a multiple of {stride}")
    return network


def has_fixed_size(name: str) -> bool:
    """Whether timm builds this network for one image size (windows, position tables)."""
    config = load_timm().get_pretrained_cfg(name, allow_unregistered=False)
    return bool(config is not None and config.fixed_input_size)


def native_size(name: str) -> tuple[int, int]:
    """``(height, width)`` that timm trained or declared this network for."""
    config = load_timm().get_pretrained_cfg(name, allow_unregistered=False)
    _, height, width = config.input_size
    return height, width
