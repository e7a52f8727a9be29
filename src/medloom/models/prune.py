"""Structured pruning: channels, heads, hidden units and blocks that matter least are physically taken out.

What hangs together (a convolution, the norm behind it, every layer that adds to or reads from its map) is found by
torch-pruning's dependency graph. The width of the tokens is left alone: position tables, class token and every norm
hang on it, and a narrower stream costs more accuracy than fewer units inside of the blocks.

Shapes: B images, H heads, E width of one head, D token width, K classes.

Reference: Fang et al., DepGraph, arXiv 2301.12900; Molchanov et al., Taylor importance, arXiv 1906.10771; heads: Michel
et al., arXiv 1905.10650.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.attention import Attention
from medloom.errors import ModelError, UsageError
from medloom.models.prune_blocks import Original, block_lists, drop_blocks, kept

KINDS = ("channels", "heads", "units", "blocks")
LEAST_WIDTH = 8
_PLAIN_OPERATIONS = {"_ElementWiseOp", "_ReshapeOp", "_ConcatOp", "_SplitOp"}
_ENDLESS = ("MaxxVit",)  # timm's CoAtNet and MaxViT: not done after ten minutes
_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


def original_of(model: nn.Module) -> Original:
    """What an unpruned model has."""
    named = dict(model.named_modules())
    widths = {n: m.out_channels for n, m in named.items() if isinstance(m, nn.Conv2d)}
    widths |= {n: m.out_features for n, m in named.items() if isinstance(m, nn.Linear)}
    heads = {n: m.num_heads for n, m in named.items() if isinstance(m, Attention)}
    return Original(widths, heads, {name: len(holder) for name, holder, _ in block_lists(model)})


def prune_step(
    model: nn.Module,
    original: Original,
    share: float,
    *,
    x_BCHW: Tensor,
    target: Tensor,
    kinds: Sequence[str] = KINDS,
) -> tuple[str, ...]:
    """Take out what matters least until ``share`` of each original width is gone; the model is changed in place.

    Args:
        share: of channels, units, heads and blocks, counted from the original; the widths that stay are multiples of
            8 (4 below 64), which is what kernels like.
        x_BCHW: normalised training images, on which importance is measured.
        target: their labels ``(B,)``, or ``(B, K)`` where labels are many.
        kinds: which of ``KINDS``.

    Returns:
        Names of the blocks that were dropped, as they were called when they were.

    Raises:
        UsageError: U236, an unknown kind.
        ModelError: C516, the graph cannot be followed, or the model does not run on what is left.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError("U236", "--what", f"'{unknown[0]}' cannot be pruned", f"Choose from {', '.join(KINDS)}")
    if any(type(part).__name__ in _ENDLESS for part in model.modules()):
        raise refused(model, ValueError("the dependency graph of this network comes to no end"))
    model.eval()
    dropped = drop_blocks(model, original, share, x_BCHW) if "blocks" in kinds else ()
    if "heads" in kinds:
        _gradients(model, x_BCHW, target)
        _prune_heads(model, original, share)
    if "channels" in kinds or "units" in kinds:
        _gradients(model, x_BCHW, target)
        _prune_widths(model, original, share, x_BCHW[:2], kinds)
    model.zero_grad(set_to_none=True)
    _check_runs(model, x_BCHW[:2])
    return dropped


def _prune_heads(model: nn.Module, original: Original, share: float) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, Attention) or name not in original.heads:
            continue
        keep = kept(original.heads[name], share)
        if keep >= module.num_heads:
            continue
        heads, width = module.num_heads, module.proj.in_features // module.num_heads
        rows_3HED = _influence(module.qkv.weight).unflatten(0, (3, heads, width))
        columns_DHE = _influence(module.proj.weight).unflatten(1, (heads, width))
        score_H = rows_3HED.sum((0, 2, 3)) + columns_DHE.sum((0, 2))
        best = score_H.topk(keep).indices.sort().values
        with torch.no_grad():
            weight = module.qkv.weight.unflatten(0, (3, heads, width))[:, best].flatten(0, 2)
            module.qkv.weight = nn.Parameter(weight.clone())
            if module.qkv.bias is not None:
                bias = module.qkv.bias.unflatten(0, (3, heads, width))[:, best].flatten()
                module.qkv.bias = nn.Parameter(bias.clone())
            back = module.proj.weight.unflatten(1, (heads, width))[:, best].flatten(1)
            module.proj.weight = nn.Parameter(back.clone())
        module.qkv.out_features, module.proj.in_features = 3 * keep * width, keep * width
        module.num_heads = keep


def _prune_widths(model: nn.Module, original: Original, share: float, x_BCHW: Tensor, kinds: Sequence[str]) -> None:
    import torch_pruning as tp

    names = {module: name for name, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that it takes for plain ones, which the check below holds
        try:
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=x_BCHW)
            roots = [nn.Conv2d, nn.Linear]
            groups = list(graph.get_all_groups(ignored_layers=_answers(model), root_module_types=roots))
        except Exception as problem:
            raise refused(model, problem) from problem
        for group in groups:
            root = group[0].dep.target.module
            kind = "channels" if isinstance(root, nn.Conv2d) else "units"
            name = names.get(root)
            if kind not in kinds or name not in original.widths or not _plain(group):
                continue
            width, keep = _width(root), _rounded(original.widths[name], share)
            if keep >= width:
                continue
            score_W = _group_score(tp, group)
            if score_W is None or len(score_W) != width:
                continue
            gone = score_W.argsort()[: width - keep].tolist()
            try:
                whole = graph.get_pruning_group(root, group[0].dep.handler, idxs=sorted(gone))
                if graph.check_pruning_group(whole):
                    whole.prune()
            except (IndexError, RuntimeError) as problem:
                raise refused(model, problem) from problem


def _plain(group: Any) -> bool:
    """Whether it is layers alone that are narrowed: no loose parameters, no token width, no attention, no groups."""
    inner = 0
    for dependency, _ in group:
        module = dependency.target.module
        if isinstance(module, _LAYERS):
            inner += isinstance(module, nn.Conv2d | nn.Linear)
            if isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels:
                return False
        elif type(module).__name__ not in _PLAIN_OPERATIONS:
            return False
    return inner >= 2  # a layer that nobody reads from is an answer


def _answers(model: nn.Module) -> list[nn.Module]:
    """Layers whose width is the number of classes."""
    named: tuple[str, ...] = getattr(model, "head_parameters", tuple)()
    return [model.get_submodule(name.rpartition(".")[0]) for name in named if name.endswith(".weight")]


def _group_score(tp: Any, group: Any) -> Tensor | None:
    """Taylor importance of each channel over all that hangs on it, and a tenth of its magnitude, which decides where a
    fitted model has no gradient left; each in units of its mean.
    """
    parts = []
    for rule, factor in ((tp.importance.TaylorImportance(), 1.0), (tp.importance.MagnitudeImportance(p=2), 0.1)):
        score_W = rule(group)
        if score_W is None:
            return None
        parts.append(factor * score_W / score_W.mean().clamp_min(torch.finfo(torch.float32).tiny))
    return parts[0] + parts[1]


def _gradients(model: nn.Module, x_BCHW: Tensor, target: Tensor) -> None:
    """Of the classification's loss in evaluation mode, so that batch statistics and dropout stay out of it."""
    model.zero_grad(set_to_none=False)
    logits_BK = model(x_BCHW)
    if target.ndim == 2:
        F.binary_cross_entropy_with_logits(logits_BK, target.float()).backward()
    else:
        F.cross_entropy(logits_BK, target).backward()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _check_runs(model: nn.Module, x_BCHW: Tensor) -> None:
    calls: list[Any] = [model]
    if hasattr(model, "train_outputs"):
        calls.append(model.train_outputs)
    try:
        with torch.no_grad():
            for call in calls:
                call(x_BCHW)
    except (RuntimeError, ValueError, AssertionError) as problem:
        raise refused(model, problem) from problem


def refused(model: nn.Module, problem: Exception) -> ModelError:
    """The one line for networks that the library cannot follow (C516)."""
    text = " ".join(str(problem).split())[:160] or type(problem).__name__
    remedy = "Leave kinds out with --what, or use distill with a smaller student"
    return ModelError("C516", type(model).__name__, f"its graph cannot be pruned ({text})", remedy)


def _influence(weight: Tensor) -> Tensor:
    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
    taylor = (weight * gradient).abs().detach()
    size = weight.detach().abs()
    tiny = torch.finfo(torch.float32).tiny
    return taylor / taylor.mean().clamp_min(tiny) + 0.1 * size / size.mean().clamp_min(tiny)


def _width(layer: Any) -> int:
    return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)


def _rounded(width: int, share: float) -> int:
    step = 8 if width >= 64 else 4
    return max(min(width, LEAST_WIDTH), step * round(width * (1 - share) / step)) if width > LEAST_WIDTH else width
