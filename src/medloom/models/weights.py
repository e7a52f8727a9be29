"""Starting from a file of weights: safetensors only, every difference named, nothing dropped in silence.

Reference: the rows C501, C502, C505 and C508 of docs/errors.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medloom.blocks.tokens import resize_position_table, resize_positions
from medloom.errors import ModelError, UsageError
from medloom.models.sizes import first_line

State = dict[str, Tensor]
_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".joblib", ".npy", ".npz")
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x93NUMPY", b"\x1f\x8b", b"BZh")
_TIMM_WRAPPER = "network."
_POSITIONS = ("position_1Dhw", "position_1Dxyz")
_OFFSETS = "relative_position_bias_table"
_TABLES = (*_POSITIONS, _OFFSETS)
_SHOWN = 5
_REMEDY = "Use the model and options that the weights were made with"


def load_weights(model: nn.Module, path: str | Path, *, new_head: bool = False) -> tuple[str, ...]:
    """Fill ``model`` from a safetensors file, or from ``model.safetensors`` in a folder.

    Three things are converted, each with a notice: position tables to another grid or window, the first convolution to
    another number of input channels (summed to one, or shared among several), half precision to single. A model may
    know other published names of itself or of one half (``translate``); what it keeps, leaves out and starts fresh is
    told too. Everything else must agree in name and shape.

    Args:
        model: from :func:`medloom.create_model`; it is filled completely or not at all.
        path: the file or its folder.
        new_head: keep the model's own fresh head, whatever head the file has.

    Returns:
        Notices: one sentence per conversion, for the run's report.

    Raises:
        UsageError: U209 nothing there.
        ModelError: C501 a pickle or another format that can run code, C502 damaged file, C505 other names or
            shapes, C508 values that are not finite, or all zero.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    state = read_safetensors(path)
    _check_values(state, path)
    return adopt(model, state, path, new_head=new_head)


def adopt(model: nn.Module, state: State, place: object, *, new_head: bool = False) -> tuple[str, ...]:
    """The same for tensors that are here already.

    Args:
        place: where they are from, for refusals.

    Raises:
        ModelError: C505 other names or shapes.
    """
    state, notices = _adapt(model, state, place, new_head)
    model.load_state_dict(state, strict=True)
    return tuple(notices)


def read_safetensors(path: Path) -> State:
    """Tensors by name.

    Raises:
        UsageError: U209 nothing there.
        ModelError: C501 not safetensors by extension or by its first bytes, C502 damaged.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(8)
    except OSError as problem:
        raise UsageError(
            "U209", path, f"weights not readable ({problem.strerror})", "Give a .safetensors file"
        ) from None
    if path.suffix.lower() in _PICKLES or start.startswith(_PICKLE_MAGIC):
        raise ModelError(
            "C501",
            path,
            "this format can run code when it is read, so it was not opened",
            "Convert it to safetensors where you trust it",
        )
    if path.suffix.lower() != ".safetensors":
        raise ModelError("C501", path, "not a .safetensors file", "Give a .safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as problem:
        raise ModelError("C502", path, f"damaged ({first_line(problem)})", "Copy it again from its source") from None


def _check_values(state: State, path: Path) -> None:
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    broken = [name for name, value in floats.items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError("C508", path, f"not finite: {_some(broken)}", "Take an earlier checkpoint")
    if floats and not any(value.any() for value in floats.values()):
        raise ModelError("C508", path, "all values are zero", "Take another file")


def _adapt(model: nn.Module, state: State, place: object, new_head: bool) -> tuple[State, list[str]]:
    own = model.state_dict()
    notices = []
    if all(name.startswith(_TIMM_WRAPPER) for name in own) and not any(
        name.startswith(_TIMM_WRAPPER) for name in state
    ):
        state = {_TIMM_WRAPPER + name: value for name, value in state.items()}
        notices.append("weights have timm's own names")
    translate: Callable[[State], tuple[State, str] | None] | None = getattr(model, "translate", None)
    if translate and not own.keys() <= state.keys() and (known := translate(state)):
        state, told = known
        rest = ", ".join(_parts(own.keys() - state, state))
        notices += [f"weights have {told}", f"the rest stays as it was: {rest}"]
        state = {**own, **state}
    head = set(_head_parameters(model))
    if new_head:
        state = {name: value for name, value in state.items() if name not in head}
        state |= {name: own[name] for name in head}
        notices.append("the head starts fresh")
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        parts = [
            f"{word}: {_some(names)}" for word, names in (("missing", missing), ("not in the model", extra)) if names
        ]
        raise ModelError("C505", place, "; ".join(parts), "Use the model and options that the weights were made with")
    stem = next((name for name, value in own.items() if value.ndim in (4, 5) and not name.endswith(_TABLES)), "")
    channels = (_channels(state.get(stem)), _channels(own.get(stem)))
    wrong = []
    for name, wanted in own.items():
        value = state[name]
        if value.shape != wanted.shape:
            converted = _convert(model, name, value, wanted, is_stem=(_channels(value), _channels(wanted)) == channels)
            if converted is None:
                wrong.append((name, value, wanted))
                continue
            notices.append(f"{name} converted from {_shape(value)} to {_shape(wanted)}")
            value = converted
        state[name] = value
    if wrong:
        listed = _some([f"{name} {_shape(value)}, wanted {_shape(wanted)}" for name, value, wanted in wrong])
        remedy = _REMEDY
        if all(name in head for name, _, _ in wrong):
            remedy = "The classes differ: set model.new_head to true to start with a fresh head"
        raise ModelError("C505", place, f"other shapes: {listed}", remedy)
    dtypes = {str(v.dtype).removeprefix("torch.") for n, v in state.items() if v.dtype != own[n].dtype}
    if dtypes:
        notices.append(f"values converted from {', '.join(sorted(dtypes))}")
    return state, notices


def _channels(value: Tensor | None) -> int:
    """Input channels of a convolution's weight; 0 for anything else."""
    return value.shape[1] if value is not None and value.ndim in (4, 5) else 0


def _convert(model: nn.Module, name: str, value: Tensor, wanted: Tensor, *, is_stem: bool) -> Tensor | None:
    """The conversions of shape that keep the meaning; None where there is none."""
    if name in _position_tables(model) and value.ndim == 3 and value.shape[2] == wanted.shape[2]:
        prefix, grid = _position_tables(model)[name]
        side = math.isqrt(max(value.shape[1] - prefix, 0))  # a flat table does not say its grid: a square is assumed
        if side and side * side + prefix == value.shape[1]:
            return resize_position_table(value.float(), grid, old_grid=(side, side), prefix=prefix)
    if name.endswith(_POSITIONS) and value.ndim == wanted.ndim and value.shape[:2] == wanted.shape[:2]:
        return resize_positions(value.float(), tuple(wanted.shape[2:]))
    if name.endswith(_OFFSETS) and value.ndim == wanted.ndim and value.shape[0] == wanted.shape[0]:
        return resize_positions(value.float()[None], tuple(wanted.shape[1:]))[0]
    if (
        is_stem
        and value.ndim == wanted.ndim
        and (value.shape[0], *value.shape[2:]) == (wanted.shape[0], *wanted.shape[2:])
    ):
        # The same grey value in every channel must give the same answer as before.
        grey = value.float().sum(dim=1, keepdim=True)
        return (grey / wanted.shape[1]).expand_as(wanted).contiguous()
    return None


def _head_parameters(model: Any) -> tuple[str, ...]:
    return tuple(model.head_parameters()) if hasattr(model, "head_parameters") else ()


def _position_tables(model: Any) -> dict[str, tuple[int, tuple[int, int]]]:
    return model.position_tables() if hasattr(model, "position_tables") else {}


def _parts(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names of whole parts; of a part that ``others`` share, of its parts."""
    shared = {name.partition(".")[0] for name in others}
    return sorted({".".join(name.split(".")[: 2 if name.partition(".")[0] in shared else 1]) for name in names})


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
