"""ConvNeXt with a DeiT head: the first stages of a ConvNeXt cut the image into tokens, DeiT looks at all of them.

The source says no more than "ConvNeXt-Base as the CNN stem combined with a DeiT-Small transformer head". Behind its
third stage ConvNeXt has one cell per 16 pixels, which at 224 is DeiT's own grid of 14x14, so that DeiT's blocks, class
token, positions and last norm load unchanged; only the step from 512 to 384 channels between them is new.

Shapes: B batch, C channels, H and W image size, h and w token grid, D token width, N tokens (CLS included), K classes.

Reference: Liu et al., A ConvNet for the 2020s, arXiv 2201.03545; Touvron et al., DeiT, arXiv 2012.12877; the pairing:
Hybrid models: best of both worlds, DOI 10.5281/zenodo.14828792, step 1 of its recipe.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from medloom.blocks.taps import Taps, token_tap
from medloom.blocks.tokens import resize_position_table, to_tokens
from medloom.blocks.transformer import Runner, init_transformer, run_blocks, transformer_blocks
from medloom.errors import UsageError
from medloom.models.backbones import TimmTrunk
from medloom.models.sizes import pair
from medloom.models.timm_networks import create_network

_STRIDE_OF_TAP = {3: 16, 4: 32}
_PUBLISHED_DEIT = {192: "deit_tiny_patch16_224", 384: "deit_small_patch16_224", 768: "deit_base_patch16_224"}
_PATCHES = "patch_embed."

State = dict[str, Tensor]


class DeiTHead(nn.Module):
    """DeiT without its patch embedding: tokens in, logits out; parameter names are timm's.

    Args:
        num_classes: K.
        grid: ``(h, w)`` that positions are learned for; another grid gets them interpolated.
        embed_dim: D.
        depth: blocks.
        num_heads: attention heads.
        dropout: on the tokens and in the blocks.
        drop_path: stochastic depth of the last block.
        zero_init: start the classifier at zero, so that the first steps do not shake fine-tuned weights below it.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        grid: tuple[int, int],
        embed_dim: int,
        depth: int,
        num_heads: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid[0] * grid[1], embed_dim))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = transformer_blocks(
            embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=4.0, dropout=dropout, drop_path=drop_path
        )
        self.runner: Runner = run_blocks
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        init_transformer(self)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        if zero_init:
            nn.init.zeros_(self.head.weight)

    def forward(self, x_BND: Tensor, grid: tuple[int, int], taps: Taps | None = None) -> Tensor:
        """``(B, h * w, D) -> (B, K)``; taps ``attention.i``, and ``tokens`` behind the last norm."""
        cls_B1D = self.cls_token.expand(x_BND.shape[0], -1, -1)
        positions_1ND = resize_position_table(self.pos_embed, grid, old_grid=self.grid, prefix=1)
        x_BND = self.pos_drop(torch.cat([cls_B1D, x_BND], dim=1) + positions_1ND)
        x_BND = self.norm(self.runner(self.blocks, x_BND, taps, grid=grid, prefix=1))
        if taps is not None:
            taps["tokens"] = token_tap(x_BND, grid=grid, prefix=1)
        return self.head(x_BND[:, 0])


class ConvNeXtDeiT(nn.Module):
    """Stages of a ConvNeXt, one linear step to the token width, DeiT's blocks.

    Args:
        num_classes: K.
        in_chans: C.
        image_size: in pixels; other sizes work too where the trunk takes them, with interpolated positions.
        trunk: any timm name that gives a feature map, also a vision transformer's (tokens laid out as a map).
        tap: stage whose map is taken, as ConvNeXt counts them: 3 has a stride of 16, 4 one of 32.
        embed_dim: D; 192, 384 and 768 have published weights.
        depth: blocks; 12 as in DeiT; 6 or 4 take evenly spaced ones of its weights.
        num_heads: attention heads.
        adapter_norm: a layer norm in front of the step to D.
        dropout: on the tokens and in the blocks.
        drop_path: stochastic depth of the last block.
        trunk_drop_path: stochastic depth of the trunk's last block; 0 leaves it out.
        zero_init_head: start the classifier at zero.
        pretrained: fetch timm's weights for the trunk and DeiT's for the blocks.

    Raises:
        UsageError: U206 unknown trunk, U207 a trunk without stochastic depth, U208 impossible option value.
        ModelError: C511 image size that the trunk cannot work on, C512 no feature maps, C513 weights not to be had.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 224,
        trunk: str = "convnext_base",
        tap: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        adapter_norm: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.2,
        trunk_drop_path: float = 0.2,
        zero_init_head: bool = False,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        _check(tap, embed_dim, num_heads, pretrained)
        self.trunk = TimmTrunk(
            trunk.removeprefix("timm/"),
            in_chans=in_chans,
            image_size=pair(image_size),
            stride=_STRIDE_OF_TAP[tap],
            drop_path=trunk_drop_path,
            pretrained=pretrained,
        )
        self.adapter_norm = nn.LayerNorm(self.trunk.channels, eps=1e-6) if adapter_norm else nn.Identity()
        self.adapter = nn.Linear(self.trunk.channels, embed_dim)
        init_transformer(self.adapter)
        self.deit = DeiTHead(
            num_classes=num_classes,
            grid=self.trunk.grid,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            dropout=dropout,
            drop_path=drop_path,
            zero_init=zero_init_head,
        )
        if pretrained:
            self._fetch_deit(embed_dim)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``; taps ``features.i`` of the trunk, ``attention.i`` and ``tokens`` of the head.

        Raises:
            ModelError: C511, a size that the trunk was not built for.
        """
        x_BChw = self.trunk(x_BCHW, taps)
        h, w = x_BChw.shape[-2:]
        x_BND = self.adapter(self.adapter_norm(to_tokens(x_BChw)))
        return self.deit(x_BND, (h, w), taps)

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return ("deit.head.weight", "deit.head.bias")

    def position_tables(self) -> dict[str, tuple[int, tuple[int, int]]]:
        """Flat position tables by parameter name: rows before the grid, and the grid."""
        return {"deit.pos_embed": (1, self.deit.grid)}

    def translate(self, state: State) -> tuple[State, str] | None:
        """Weights under timm's names as a part of ours, and what was done in words; None where they are not known.

        A DeiT gives the head (its patch embedding has no place here, and its classifier only where the classes are
        as many); a network of the trunk's kind gives the trunk.
        """
        if "cls_token" in state and "blocks.0.attn.qkv.weight" in state and "deit.cls_token" not in state:
            return self._from_deit(state)
        return self.trunk.translate(state, prefix="trunk.")

    def _from_deit(self, state: State) -> tuple[State, str]:
        given = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        kept = spaced(given, len(self.deit.blocks))
        part = {}
        for name, value in state.items():
            first, _, rest = name.partition(".")
            if first == "blocks":
                number, _, rest = rest.partition(".")
                if int(number) in kept:
                    part[f"deit.blocks.{kept.index(int(number))}.{rest}"] = value
            elif first == "head" and value.shape[0] != self.deit.head.out_features:
                continue
            elif not name.startswith(_PATCHES):
                part[f"deit.{name}"] = value
        blocks = "all its blocks" if len(kept) == given else f"blocks {', '.join(map(str, kept))} of {given}"
        head = "" if "deit.head.weight" in part else ", without its classifier"
        return part, f"DeiT's own names: {blocks}, without its patch embedding{head}"

    def _fetch_deit(self, embed_dim: int) -> None:
        published = create_network(
            _PUBLISHED_DEIT[embed_dim], in_chans=3, image_size=(224, 224), pretrained=True, num_classes=0
        )
        part, _ = self._from_deit(published.state_dict())
        part["deit.pos_embed"] = resize_position_table(
            part["deit.pos_embed"], self.deit.grid, old_grid=(14, 14), prefix=1
        )
        self.load_state_dict(self.state_dict() | part, strict=True)


def spaced(given: int, wanted: int) -> tuple[int, ...]:
    """Which of ``given`` blocks ``wanted`` ones keep: evenly spaced, the first and the last among them.

    Raises:
        UsageError: U208, more are wanted than there are.
    """
    if wanted > given:
        raise UsageError("U208", "option depth", f"the weights have {given} blocks, not {wanted}", "Choose fewer")
    return (given - 1,) if wanted == 1 else tuple(round(i * (given - 1) / (wanted - 1)) for i in range(wanted))


convnext_deit = ConvNeXtDeiT
convnext_deit_tiny = functools.partial(ConvNeXtDeiT, trunk="convnext_tiny", embed_dim=192, num_heads=3)
convnext_deit_atto = functools.partial(ConvNeXtDeiT, trunk="convnext_atto", embed_dim=192, num_heads=3, depth=4)


def _check(tap: int, embed_dim: int, num_heads: int, pretrained: bool) -> None:
    if tap not in _STRIDE_OF_TAP:
        raise UsageError("U208", "option tap", f"{tap} is not known", "Choose 3 (stride 16) or 4 (stride 32)")
    if num_heads < 1 or embed_dim % num_heads:
        raise UsageError("U208", "option num_heads", f"{embed_dim} channels do not divide by {num_heads}", "Change one")
    if pretrained and embed_dim not in _PUBLISHED_DEIT:
        widths = ", ".join(map(str, _PUBLISHED_DEIT))
        raise UsageError("U208", "option pretrained", f"no DeiT is {embed_dim} wide", f"Choose embed_dim of {widths}")
