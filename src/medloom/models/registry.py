"""Every model by name, built on first use; listing names and cards needs no torch."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medloom.errors import UsageError
from medloom.models.cards import CARDS, timm_card

if TYPE_CHECKING:
    from torch import nn

TIMM_PREFIX = "timm/"

MODELS = {
    "resnet18": "medloom.models.backbones:resnet18",
    "resnet50": "medloom.models.backbones:resnet50",
    "densenet121": "medloom.models.backbones:densenet121",
    "efficientnet_b0": "medloom.models.backbones:efficientnet_b0",
    "convnext_base": "medloom.models.backbones:convnext_base",
    "coatnet_0": "medloom.models.backbones:coatnet_0",
    "coatnet_1": "medloom.models.backbones:coatnet_1",
    "coatnet_2": "medloom.models.backbones:coatnet_2",
    "maxvit_tiny": "medloom.models.backbones:maxvit_tiny",
    "conv2d": "medloom.models.conv2d:conv2d",
    "vit": "medloom.models.vit:vit",
    "vit_tiny": "medloom.models.vit:vit_tiny",
    "vit_small": "medloom.models.vit:vit_small",
    "vit_base": "medloom.models.vit:vit_base",
    "deit_small": "medloom.models.vit:deit_small",
    "convnext_deit": "medloom.models.convnext_deit:convnext_deit",
    "convnext_deit_tiny": "medloom.models.convnext_deit:convnext_deit_tiny",
    "convnext_deit_atto": "medloom.models.convnext_deit:convnext_deit_atto",
    "hatr": "medloom.models.hatr:hatr",
    "hatr_conv2d": "medloom.models.hatr:hatr_conv2d",
    "hatr_resnet50": "medloom.models.hatr:hatr_resnet50",
    "token_pruned": "medloom.models.token_pruned:token_pruned",
    "token_pruned_resnet18": "medloom.models.token_pruned:token_pruned_resnet18",
    "dynamic_vit": "medloom.models.dynamic_vit:dynamic_vit",
    "medvit_tiny": "medloom.models.medvit:medvit_tiny",
    "medvit_small": "medloom.models.medvit:medvit_small",
    "medvit_base": "medloom.models.medvit:medvit_base",
    "medvit_large": "medloom.models.medvit:medvit_large",
    "dbct": "medloom.models.dbct:dbct",
    "dbct_keras": "medloom.models.dbct:dbct_keras",
    "rr_vit": "medloom.models.rr_vit:rr_vit",
    "hybrid_rr_vit": "medloom.models.rr_vit:hybrid_rr_vit",
    "unet": "medloom.models.unet:unet",
    "transunet": "medloom.models.transunet:transunet",
    "transunet_small": "medloom.models.transunet:transunet_small",
    "transunet_tiny": "medloom.models.transunet:transunet_tiny",
    "maxvit_unet": "medloom.models.maxvit_unet:maxvit_unet",
    "maxvit_unet_mini": "medloom.models.maxvit_unet:maxvit_unet_mini",
    "unet_3d": "medloom.models.unet:unet_3d",
    "transunet_3d": "medloom.models.transunet_3d:transunet_3d",
    "transunet_3d_small": "medloom.models.transunet_3d:transunet_3d_small",
    "transunet_3d_tiny": "medloom.models.transunet_3d:transunet_3d_tiny",
    "maxvit_unet_3d_tiny": "medloom.models.maxvit_unet:maxvit_unet_3d_tiny",
    "maxvit_unet_3d_small": "medloom.models.maxvit_unet:maxvit_unet_3d_small",
    "swin_unetr": "medloom.models.swin_unetr:swin_unetr",
}

_COMMON = ("num_classes", "in_chans", "image_size", "pretrained")


def create_model(
    name: str,
    *,
    num_classes: int,
    in_chans: int | None = None,
    image_size: int | Sequence[int] | None = None,
    spatial_dims: int | None = None,
    pretrained: bool = False,
    pruned: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build one: ``forward(x, taps=None)`` gives logits, ``(B, K)`` of a classifier, ``(B, K, *size)`` of a segmenter.

    Args:
        name: from :func:`list_models`, or ``timm/NAME`` for any other timm network.
        num_classes: K; of a segmenter with the background.
        in_chans: channels of the input, 1 or 3 or any other number; None is 3, and 1 for volumes.
        image_size: pixels, a number or one per axis; None is what the model's card counts with (224, volumes 96).
        spatial_dims: 2 or 3, for whoever wants to be sure; every name has one of them.
        pretrained: fetch published weights (the one thing here that uses the network).
        pruned: what ``medloom prune`` took out, as ``model.json`` tells it (``models.narrowed``).
        options: of the model itself; :func:`model_options` names them.

    Raises:
        UsageError: U206 unknown name, U207 unknown option, U208 impossible value.
        ModelError: C505 ``pruned`` is not of this model, C511 image size that this model cannot work on, C512 no
            feature maps, C513 weights not to be had.
    """
    builder, fixed = _builder(name)
    shape = input_of(name)
    in_chans = shape["in_chans"] if in_chans is None else in_chans
    image_size = shape["image_size"] if image_size is None else image_size
    _check_common(name, num_classes, in_chans, spatial_dims)
    known = _options_of(builder)
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            start = f"Did you mean '{near[0]}'? " if near else ""
            raise UsageError("U207", f"model {name}", f"unknown option '{key}'", f"{start}Options: {', '.join(known)}")
        _check_value(name, key, value, known[key])
    if "pretrained" in inspect.signature(builder).parameters:
        fixed = {**fixed, "pretrained": pretrained}
    elif pretrained:
        raise UsageError("U208", f"model {name}", "it has no published weights", "Leave pretrained away")
    try:
        model = builder(num_classes=num_classes, in_chans=in_chans, image_size=image_size, **fixed, **options)
    except (TypeError, ValueError) as problem:
        raise UsageError(
            "U208", f"model {name}", f"it cannot be built so ({problem})", "Correct the option"
        ) from problem
    if pruned is None:
        return model
    from medloom.models.narrowed import narrow

    return narrow(model, pruned)


def list_models(*, task: str | None = None, spatial_dims: int | None = None) -> tuple[str, ...]:
    """Registered names; any timm network can be had beside them as ``timm/NAME``.

    Args:
        task: ``classification`` or ``segmentation``; None lists both.
        spatial_dims: 2 for images, 3 for volumes; None lists both.
    """
    cards = {name: _completed(CARDS[name]) for name in MODELS}
    return tuple(
        name
        for name, card in cards.items()
        if task in (None, card["task"]) and spatial_dims in (None, card["spatial_dims"])
    )


def model_card(name: str) -> dict[str, Any]:
    """What a model is.

    ``summary``, ``task`` (classification or segmentation), ``spatial_dims``, ``parameters`` and ``macs`` (2 classes and
    the ``in_chans`` and ``image_size`` of the card), ``source``, ``reading`` (what we chose where the source is silent
    or contradicts itself), ``criticism`` (what is known against it).

    Raises:
        UsageError: U206 unknown name.
    """
    if name.startswith(TIMM_PREFIX):
        from medloom.models.macs import macs_of

        return _completed({**timm_card(name), "parameters": count_parameters(name), "macs": macs_of(name)})
    if name not in CARDS:
        raise _unknown(name)
    return _completed(CARDS[name])


def input_of(name: str) -> dict[str, int]:
    """``spatial_dims``, and the ``in_chans`` and ``image_size`` that a model takes where nothing else is asked."""
    card = _completed(CARDS.get(name, {}))
    return {key: card[key] for key in ("spatial_dims", "in_chans", "image_size")}


def model_options(name: str) -> dict[str, Any]:
    """Options of a model with their defaults.

    Raises:
        UsageError: U206 unknown name.
    """
    return {key: parameter.default for key, parameter in _options_of(_builder(name)[0]).items()}


def count_parameters(name: str, *, num_classes: int = 2, **arguments: Any) -> int:
    """How many weights a model has, without making any of them."""
    import torch

    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes, **arguments)
    return sum(parameter.numel() for parameter in model.parameters())


def _builder(name: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """The function behind a name, and the arguments that the name stands for."""
    if name.startswith(TIMM_PREFIX):
        target, fixed = "medloom.models.backbones:timm_classifier", {"name": name.removeprefix(TIMM_PREFIX)}
    elif name in MODELS:
        target, fixed = MODELS[name], {}
    else:
        raise _unknown(name)
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function), fixed


def _options_of(builder: Callable[..., nn.Module]) -> dict[str, inspect.Parameter]:
    """Keyword parameters that the caller may choose: not the common ones, nor those that the name decides."""
    decided = {*_COMMON, "name", *getattr(builder, "keywords", {})}
    return {key: p for key, p in inspect.signature(builder).parameters.items() if key not in decided}


def _unknown(name: str) -> UsageError:
    near = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"Did you mean '{near[0]}'" if near else f"Known: {', '.join(MODELS)}, and timm/NAME"
    return UsageError("U206", f"model {name}", "unknown model", hint)


def _completed(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card says of its task and input what is not usual; here is what is."""
    volumes = card.get("spatial_dims") == 3
    usual = {"task": "classification", "spatial_dims": 2, "in_chans": 1 if volumes else 3}
    return {**usual, "image_size": 96 if volumes else 224, **card}


def _check_common(name: str, num_classes: int, in_chans: int, spatial_dims: int | None) -> None:
    for key, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if not isinstance(value, int) or value < 1:
            raise UsageError("U208", f"model {name}", f"{key} is {value!r}", "Give a whole number from 1 on")
    own = input_of(name)["spatial_dims"]
    if spatial_dims not in (None, own):
        remedy = f"Use spatial_dims={own}, or another model"
        raise UsageError("U208", f"model {name}", f"it has no form in {spatial_dims} dimensions", remedy)


def _check_value(name: str, key: str, value: Any, parameter: inspect.Parameter) -> None:
    """A recipe's value must be of the kind of the default; a foreign exception would name neither key nor remedy."""
    default = parameter.default
    if default is inspect.Parameter.empty or default is None:
        return
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        least = min(default, 1)
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        wanted = f"a whole number from {least} on"
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        wanted = "a number from 0 on"
    elif isinstance(default, str):
        fits, wanted = isinstance(value, str), "a word"
    else:
        fits, wanted = isinstance(value, list | tuple), "a list"
    if not fits:
        raise UsageError("U208", f"model {name}", f"option '{key}' is {value!r}", f"Give {wanted}")
