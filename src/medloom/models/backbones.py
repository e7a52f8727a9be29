"""timm networks under our contract: logits in one call, feature maps through taps, any input channels, clear refusals.

Nothing here registers hooks: timm's ``forward_intermediates`` returns the feature maps.

Shapes: B batch, C channels, H and W image size, h and w map size, K classes.

Reference: Wightman, PyTorch image models, github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from medloom.blocks.taps import Tap, Taps
from medloom.errors import ModelError, UsageError
from medloom.models.sizes import check_cells, first_line, pair, probe, size_error

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
    if has_fixed_size(name) and image_size != _native_size(name):
        options = {**options, "img_size": image_size}
    try:
        network = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **options)
    except TypeError as problem:
        if "img_size" in str(problem):
            remedy = f"Use {'x'.join(map(str, _native_size(name)))}"
            raise size_error(f"timm/{name}", image_size, "does not fit: its size is fixed", remedy) from None
        raise UsageError("U207", f"timm/{name}", f"an option is not known there ({problem})", "Leave it out") from None
    except (AssertionError, ValueError, ZeroDivisionError) as problem:
        remedy = f"Use a multiple of 32, or {'x'.join(map(str, _native_size(name)))}"
        raise size_error(f"timm/{name}", image_size, f"does not fit ({problem})", remedy) from None
    except (OSError, RuntimeError) as problem:
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
    return network


def has_fixed_size(name: str) -> bool:
    """Whether timm builds this network for one image size (windows, position tables)."""
    config = load_timm().get_pretrained_cfg(name, allow_unregistered=False)
    return bool(config is not None and config.fixed_input_size)


class TimmClassifier(nn.Module):
    """A timm network as it is, with its own head.

    Args:
        name: timm's name.
        num_classes: K.
        in_chans: C; pretrained weights are converted by timm (summed over RGB for one channel).
        image_size: in pixels; networks with windows or position tables accept this one alone.
        pretrained: fetch timm's weights.
        dropout: before the classifier; None leaves timm's default.
        drop_path: stochastic depth; None leaves timm's default.
        small_input: ResNet only, for 28 to 64 px: 3x3 stem with stride 1 and no max-pool, as in MedMNIST.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 224,
        pretrained: bool = False,
        dropout: float | None = None,
        drop_path: float | None = None,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = pair(image_size)
        self.fixed_size = has_fixed_size(name) if load_timm().is_model(name.partition(".")[0]) else False
        network: Any = create_network(
            name,
            in_chans=in_chans,
            image_size=self.image_size,
            pretrained=pretrained,
            num_classes=num_classes,
            **_given(drop_rate=dropout, drop_path_rate=drop_path),
        )
        if small_input:
            _shrink_stem(network, in_chans)
        smallest = 1 if small_input else max(info["reduction"] for info in network.feature_info)
        check_cells(name, self.image_size, smallest)
        probe(network, next(network.parameters()), name, in_chans, self.image_size)
        self.network = network

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``; taps ``features.0`` ... hold the maps ``(B, D, h, w)`` from fine to coarse.

        Raises:
            ModelError: C511, a size that this network was not built for.
        """
        size = tuple(x_BCHW.shape[-2:])
        if self.fixed_size and size != self.image_size:
            raise size_error(self.name, size, "does not fit", f"Build it with image_size={size}, or resize the image")
        if taps is None:
            return self.network(x_BCHW)
        x_BChw, maps = self.network.forward_intermediates(x_BCHW)
        _write_maps(taps, maps)
        return self.network.forward_head(x_BChw)

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        head = {id(parameter) for parameter in self.network.get_classifier().parameters()}
        return tuple(name for name, parameter in self.named_parameters() if id(parameter) in head)


class TimmTrunk(nn.Module):
    """A timm network without its head, cut behind the last stage of a given stride.

    Args:
        name: timm's name.
        in_chans: input channels.
        image_size: in pixels.
        stride: of the map that is wanted (8, 16, 32); None takes the deepest. What lies behind is dropped, so no
            parameter stays without gradient.
        pretrained: fetch timm's weights.

    Attributes:
        channels: of the map.
        grid: ``(h, w)`` of the map at ``image_size``.
    """

    def __init__(
        self,
        name: str,
        *,
        in_chans: int,
        image_size: tuple[int, int],
        stride: int | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        network: Any = create_network(
            name, in_chans=in_chans, image_size=image_size, pretrained=pretrained, num_classes=0
        )
        self.fixed_size = has_fixed_size(name)
        strides = [info["reduction"] for info in network.feature_info]
        if stride is None:
            stride = strides[-1]
        if stride not in strides:
            known = ", ".join(map(str, sorted(set(strides))))
            raise UsageError("U208", f"trunk {name}", f"it has no map of stride {stride}", f"Choose one of {known}")
        check_cells(name, image_size, stride)
        self.index = len(strides) - 1 - strides[::-1].index(stride)
        self.stride = stride
        self.channels = int(network.feature_info[self.index]["num_chs"])
        network.prune_intermediate_layers([self.index], prune_norm=True, prune_head=True)
        self.network = network
        h, w = probe(self, next(network.parameters()), name, in_chans, image_size).shape[-2:]
        self.grid = (h, w)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, channels, h, w)``; taps ``features.0`` ... hold all maps up to that one.

        Raises:
            ModelError: C511, a size that this network was not built for.
        """
        size = tuple(x_BCHW.shape[-2:])
        if self.fixed_size and size != self.image_size:
            raise size_error(self.name, size, "does not fit", f"Build it with image_size={size}, or resize the image")
        wanted = [self.index] if taps is None else list(range(self.index + 1))
        maps = self.network.forward_intermediates(x_BCHW, indices=wanted, stop_early=True, intermediates_only=True)
        if taps is not None:
            _write_maps(taps, maps)
        return maps[-1]


def timm_classifier(
    *,
    name: str,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | tuple[int, int] = 224,
    pretrained: bool = False,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> TimmClassifier:
    """Any timm network by its timm name; see :class:`TimmClassifier`."""
    return TimmClassifier(
        name,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        pretrained=pretrained,
        dropout=dropout,
        drop_path=drop_path,
    )


resnet18 = functools.partial(TimmClassifier, "resnet18")
resnet50 = functools.partial(TimmClassifier, "resnet50")
densenet121 = functools.partial(timm_classifier, name="densenet121")
efficientnet_b0 = functools.partial(timm_classifier, name="efficientnet_b0")
convnext_base = functools.partial(timm_classifier, name="convnext_base")
coatnet_0 = functools.partial(timm_classifier, name="coatnet_0_224")
maxvit_tiny = functools.partial(timm_classifier, name="maxvit_tiny_tf_224")


def _shrink_stem(network: Any, in_chans: int) -> None:
    network.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def _write_maps(taps: Taps, maps: list[Tensor]) -> None:
    for i, x_BDhw in enumerate(maps):
        taps[f"features.{i}"] = Tap(x_BDhw, grid=tuple(x_BDhw.shape[-2:]))


def _native_size(name: str) -> tuple[int, int]:
    config = load_timm().get_pretrained_cfg(name, allow_unregistered=False)
    _, height, width = config.input_size
    return height, width


def _given(**options: float | None) -> dict[str, float]:
    return {key: value for key, value in options.items() if value is not None}
