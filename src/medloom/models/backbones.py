"""timm networks under our contract: logits in one call, feature maps through taps, any input channels, clear refusals.

Nothing here registers hooks: timm's ``forward_intermediates`` returns the feature maps.

Shapes: B batch, C channels, H and W image size, h and w map size, K classes.

Reference: Wightman, PyTorch image models, github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from torch import Tensor, nn

from medloom.blocks.heads import hidden_head
from medloom.blocks.taps import Tap, Taps
from medloom.errors import UsageError
from medloom.models.sizes import check_cells, pair, probe, size_error
from medloom.models.timm_networks import TIMM_NAMES, create_network, has_fixed_size


class TimmClassifier(nn.Module):
    """A timm network as it is, with its own head.

    Args:
        name: timm's name.
        num_classes: K.
        in_chans: C; pretrained weights are converted by timm (summed over RGB for one channel).
        image_size: in pixels; networks with windows or position tables accept this one alone.
        pretrained: fetch timm's weights.
        dropout: before the last linear layer; None leaves timm's default.
        drop_path: stochastic depth; None leaves timm's default.
        head_hidden: 0 leaves timm's one linear layer; else so many ReLU units stand between the pooled features and
            the classifier (256 in the slides on ChestMNIST), and ``dropout`` behind them.
        checkpointing: in training, keep a block's input and compute the rest again in the backward pass: less memory
            for more time (DenseNet's concatenations above all). Running statistics then move twice a step.
        small_input: ResNet only, for 28 to 64 px: 3x3 stem with stride 1 and no max-pool, as in MedMNIST.

    Raises:
        UsageError: U208, a head that cannot be widened, a network that offers no checkpointing.
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
        head_hidden: int = 0,
        checkpointing: bool = False,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = pair(image_size)
        network: Any = create_network(
            name,
            in_chans=in_chans,
            image_size=self.image_size,
            pretrained=pretrained,
            num_classes=num_classes,
            **_given(drop_rate=None if head_hidden else dropout, drop_path_rate=drop_path),
        )
        if head_hidden:
            _widen_head(network, head_hidden, num_classes, dropout or 0.0)
        self.fixed_size = has_fixed_size(name)
        if small_input:
            _shrink_stem(network, in_chans)
        smallest = 1 if small_input else max(info["reduction"] for info in network.feature_info)
        check_cells(name, self.image_size, smallest)
        probe(network, next(network.parameters()), name, in_chans, self.image_size)
        self.network = network
        self.checkpointing = checkpointing
        self.train()

    def train(self, mode: bool = True) -> TimmClassifier:
        """As ``nn.Module.train``; checkpointing is for training alone, answers and exports never meet it.

        Raises:
            UsageError: U208, this network offers no checkpointing.
        """
        super().train(mode)
        if self.checkpointing:
            try:
                self.network.set_grad_checkpointing(mode)
            except (AssertionError, AttributeError):
                raise UsageError(
                    "U208", f"model {self.name}", "timm has no checkpointing for it", "Leave checkpointing out"
                ) from None
        return self

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
        classifier = self.network.get_classifier()
        last = classifier[-1] if isinstance(classifier, nn.Sequential) else classifier
        head = {id(parameter) for parameter in last.parameters()}
        return tuple(name for name, parameter in self.named_parameters() if id(parameter) in head)

    def parameter_blocks(self) -> dict[str, int | None]:
        """For each parameter the block that it belongs to, from 0 at the input; None outside of blocks."""
        return _blocks_of(self.network)


class TimmTrunk(nn.Module):
    """A timm network without its head, cut behind the last stage of a given stride.

    A network of tokens can be a trunk too: timm lays its patch tokens out as a map.

    Args:
        name: timm's name, or ours of a network that timm calls otherwise.
        in_chans: input channels.
        image_size: in pixels.
        stride: of the map that is wanted (8, 16, 32); None takes the deepest. What lies behind is dropped, so no
            parameter stays without gradient.
        drop_path: stochastic depth of the network's last block; 0 leaves it out.
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
        drop_path: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.name = name = TIMM_NAMES.get(name, name)
        self.image_size = image_size
        network: Any = create_network(
            name,
            in_chans=in_chans,
            image_size=image_size,
            pretrained=pretrained,
            num_classes=0,
            **_given(drop_path_rate=drop_path or None),
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

    def parameter_blocks(self) -> dict[str, int | None]:
        """For each parameter the block that it belongs to, from 0 at the input; None outside of blocks."""
        return _blocks_of(self.network)

    def translate(self, state: dict[str, Tensor], *, prefix: str) -> tuple[dict[str, Tensor], str] | None:
        """Weights of the whole network under timm's names as those of this trunk; None where they are not.

        Args:
            state: tensors by timm's names.
            prefix: of this trunk's names in the model.
        """
        own = self.network.state_dict().keys()
        if not own <= state.keys():
            return None
        behind = f", without {len(state) - len(own)} tensors behind it" if len(state) > len(own) else ""
        return {f"{prefix}network.{name}": state[name] for name in own}, f"timm's own names: the trunk{behind}"


def timm_classifier(
    *,
    name: str,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | tuple[int, int] = 224,
    pretrained: bool = False,
    dropout: float | None = None,
    drop_path: float | None = None,
    head_hidden: int = 0,
    checkpointing: bool = False,
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
        head_hidden=head_hidden,
        checkpointing=checkpointing,
    )


resnet18 = functools.partial(TimmClassifier, "resnet18")
resnet50 = functools.partial(TimmClassifier, "resnet50")
densenet121 = functools.partial(timm_classifier, name="densenet121")
efficientnet_b0 = functools.partial(timm_classifier, name="efficientnet_b0")
convnext_base = functools.partial(timm_classifier, name="convnext_base")
coatnet_0 = functools.partial(timm_classifier, name=TIMM_NAMES["coatnet_0"])
coatnet_1 = functools.partial(timm_classifier, name=TIMM_NAMES["coatnet_1"])
coatnet_2 = functools.partial(timm_classifier, name=TIMM_NAMES["coatnet_2"])
maxvit_tiny = functools.partial(timm_classifier, name=TIMM_NAMES["maxvit_tiny"])


def _shrink_stem(network: Any, in_chans: int) -> None:
    network.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def _widen_head(network: Any, hidden: int, num_classes: int, dropout: float) -> None:
    name = network.pretrained_cfg.get("classifier")
    classifier = network.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(classifier, nn.Linear):
        raise UsageError("U208", "option head_hidden", "this network's head is not one linear layer", "Leave it out")
    network.set_submodule(name, hidden_head(classifier.in_features, hidden, num_classes, dropout=dropout))


def _write_maps(taps: Taps, maps: list[Tensor]) -> None:
    for i, x_BDhw in enumerate(maps):
        taps[f"features.{i}"] = Tap(x_BDhw, grid=tuple(x_BDhw.shape[-2:]))


def _blocks_of(network: Any) -> dict[str, int | None]:
    """As timm groups its parameters: stem, blocks, and what matches neither (norms behind the last block, head)."""
    from timm.models import group_parameters

    matcher = network.group_matcher(coarse=False)
    if not isinstance(matcher, dict) or "blocks" not in matcher:
        return {}  # the few that group otherwise are grouped by their names
    group_of = group_parameters(network, matcher, reverse=True)
    patterns = matcher["blocks"]
    patterns = [patterns] if isinstance(patterns, str) else [pattern for pattern, _ in patterns]
    inside = {name for name in group_of if any(re.match(pattern, name) for pattern in patterns)}
    return {f"network.{name}": group if name in inside else None for name, group in group_of.items()}


def _given(**options: float | None) -> dict[str, float]:
    return {key: value for key, value in options.items() if value is not None}
