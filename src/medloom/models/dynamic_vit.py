"""DynamicViT: three small predictors between the blocks of a ViT say which patches go on, ever fewer of them.

In training a draw per token decides, and attention leaves out what was dropped, so every choice has a gradient; nothing
is saved there. In answering the best tokens are gathered. Beside its predictors this is our ViT, name by name, so that
weights of a ViT or DeiT are a start; with all tokens kept it is that ViT. Weights do not depend on the keep rate.

Shapes: B batch, C channels, H and W image size, D token width, N grid tokens, P the prefix (CLS) and the grid tokens
that are left, K classes, S cuts.

Reference: Rao et al., DynamicViT, arXiv 2106.02034; Gumbel-softmax: Jang et al., arXiv 1611.01144.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloom.blocks.selection import check_keep, gather_tokens, keep_count, kept_mask
from medloom.blocks.taps import Tap, Taps, token_tap
from medloom.blocks.tokens import PatchEmbedding, resize_position_table, to_tokens
from medloom.blocks.transformer import Block, init_transformer, transformer_blocks
from medloom.errors import UsageError
from medloom.models.sizes import pair, size_error
from medloom.models.timm_networks import create_network

State = dict[str, Tensor]
CUTS = 3
_PUBLISHED = {192: "deit_tiny_patch16_224", 384: "deit_small_patch16_224", 768: "deit_base_patch16_224"}


class TokenPredictor(nn.Module):
    """Should a token go on? Asked of the token itself, and of the mean of all that are there.

    Layer norm; half of the width from the token, half from the mean; then D/2, D/4 and 2 units. Their log-softmax is
    left to whoever draws: it changes no order, and would round scores that are close to one another to the same.

    Reference: arXiv 2106.02034, section 3.2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        half, quarter = dim // 2, dim // 4
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.local = nn.Linear(dim, half)
        self.whole = nn.Linear(dim, half)
        self.fc1 = nn.Linear(2 * half, half)
        self.fc2 = nn.Linear(half, quarter)
        self.fc3 = nn.Linear(quarter, 2)
        self.act = nn.GELU()

    def forward(self, x_BND: Tensor, present_BN: Tensor | None = None) -> Tensor:
        """``(B, N, D) -> (B, N, 2)``: logits of going on, and of being dropped.

        Args:
            present_BN: 1 where a token is there, 0 where it was dropped before; None where all are there.
        """
        x_BND = self.norm(x_BND)
        own_BNE, all_BNE = self.act(self.local(x_BND)), self.act(self.whole(x_BND))
        if present_BN is None:
            mean_B1E = all_BNE.mean(dim=1, keepdim=True)
        else:
            weight_BN = present_BN / present_BN.sum(dim=1, keepdim=True).clamp_min(1.0)
            mean_B1E = (weight_BN[:, :, None] * all_BNE).sum(dim=1, keepdim=True)
        y_BNE = torch.cat([own_BNE, mean_B1E.to(own_BNE.dtype).expand_as(own_BNE)], dim=2)
        return self.fc3(self.act(self.fc2(self.act(self.fc1(y_BNE))))).float()


class DynamicViT(nn.Module):
    """A ViT that cuts a quarter, half and three quarters of the way through its blocks.

    Args:
        num_classes: K.
        in_chans: C.
        image_size: in pixels, a multiple of ``patch_size``; other multiples work too, with interpolated positions.
        patch_size: pixels per side of a patch; 8 suits small images.
        embed_dim: D, at least 4.
        depth: blocks, at least 4.
        num_heads: attention heads.
        mlp_ratio: hidden width of the blocks' MLP over D.
        keep_rate: share of the tokens behind the first cut; its square behind the second, its cube behind the third.
            1 leaves the predictors out.
        dropout: on the tokens and in the blocks.
        drop_path: stochastic depth of the last block.
        pretrained: fetch DeiT's weights for all but head and predictors; of the published sizes alone.

    Raises:
        UsageError: U208 impossible option value.
        ModelError: C511 image size that is no multiple of the patch size, C513 weights not to be had.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        keep_rate: float = 0.7,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        _check(embed_dim, depth, num_heads)
        self.patch_size = patch_size
        self.grid = self._grid(pair(image_size))
        self.keep_rate = check_keep(keep_rate)
        self.patch_embed = PatchEmbedding(in_chans, embed_dim, patch_size=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = transformer_blocks(
            embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=drop_path
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self.predictors = nn.ModuleList(TokenPredictor(embed_dim) for _ in range(CUTS))
        init_transformer(self)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=self.patch_embed.proj.weight[0].numel() ** -0.5)
        assert self.patch_embed.proj.bias is not None
        nn.init.zeros_(self.patch_embed.proj.bias)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        if pretrained:
            self._fetch((patch_size, depth, num_heads, mlp_ratio), in_chans, pair(image_size))

    def set_keep(self, rate: float) -> None:
        """Another keep rate for the same weights, from the next call on.

        Raises:
            UsageError: U208, a rate outside (0, 1].
        """
        self.keep_rate = check_keep(rate)

    def forward(self, x_BCHW: Tensor, taps: Taps | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, K)``, of the tokens that the predictors rank highest.

        Taps: ``token_score`` ``(B, N)``, the first predictor's log-odds, which sees all tokens; ``kept`` ``(B, N)`` of
        zeros and ones, the tokens that reached the end; ``attention.i`` and ``tokens``, without a grid behind a cut.

        Raises:
            ModelError: C511, a size that is no multiple of the patch size.
        """
        grid = self._grid(tuple(x_BCHW.shape[-2:]))
        x_BPD = self._embed(x_BCHW, grid)
        cells = x_BPD.shape[1] - 1
        counts = self.kept_counts(cells)
        place_BN = torch.arange(cells, device=x_BPD.device).expand(x_BPD.shape[0], -1)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            for cut in self._cuts_before(i):
                fewer = counts[cut] < x_BPD.shape[1] - 1
                if not fewer and (taps is None or cut):
                    continue
                logit_BN2 = self.predictors[cut](x_BPD[:, 1:])
                score_BN = logit_BN2[:, :, 0] - logit_BN2[:, :, 1]
                if taps is not None and not cut:
                    taps["token_score"] = Tap(score_BN, grid=grid)
                if fewer:
                    best_BM = score_BN.topk(counts[cut], dim=1).indices
                    x_BPD = torch.cat([x_BPD[:, :1], gather_tokens(x_BPD[:, 1:], best_BM)], dim=1)
                    place_BN = place_BN.gather(1, best_BM)
            if taps is not None:
                # Beside the block, not instead of it: a choice must not turn on another kernel's last digit.
                attention_BHPP = block.attn.forward_with_weights(block.normed(x_BPD))[1]
                whole = x_BPD.shape[1] == 1 + cells
                taps[f"attention.{i}"] = Tap(attention_BHPP, grid=grid if whole else (), prefix=1)
            x_BPD = block(x_BPD)
        x_BPD = self.norm(x_BPD)
        if taps is not None:
            taps["kept"] = Tap(kept_mask(place_BN, cells), grid=grid)
            taps["tokens"] = token_tap(x_BPD, grid=grid, prefix=1)
        return self.head(x_BPD[:, 0])

    def train_outputs(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """What training reads: all tokens go through all blocks, and nobody looks at those that a draw has dropped.

        ``logits`` (B, K); ``kept_share`` (B, S), of the tokens behind each cut, with gradient to the predictors; and
        ``kept_goal`` (S,), what answering keeps there. At keep rate 1 the answer is the ViT's, and the predictors
        learn beside it to keep everything.
        """
        x_BPD = self._embed(x_BCHW, self._grid(tuple(x_BCHW.shape[-2:])))
        cells, dense = x_BPD.shape[1] - 1, self.keep_rate == 1.0
        present_BN = torch.ones(x_BPD.shape[0], cells, device=x_BPD.device)
        shares = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            for cut in self._cuts_before(i):
                seen_BND = x_BPD[:, 1:].detach() if dense else x_BPD[:, 1:]
                present_BN = present_BN * draw(self.predictors[cut](seen_BND, present_BN))
                shares.append(present_BN.mean(dim=1))
            if dense or not shares:
                x_BPD = block(x_BPD)
            else:
                there_BP = F.pad(present_BN, (1, 0), value=1.0)
                update_BPD = block.attn.forward_masked(block.normed(x_BPD), there_BP)
                x_BPD = block.feed_forward(x_BPD + block.drop_path(update_BPD))
        goal_S = torch.tensor(self.kept_counts(cells), device=x_BPD.device) / cells
        logits_BK = self.head(self.norm(x_BPD)[:, 0])
        return {"logits": logits_BK, "kept_share": torch.stack(shares, dim=1), "kept_goal": goal_S}

    def kept_counts(self, cells: int) -> tuple[int, ...]:
        """Grid tokens behind each cut, of ``cells`` in front of the first: multiples of 8, at least 8."""
        return tuple(keep_count(cells, self.keep_rate ** (cut + 1)) for cut in range(CUTS))

    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose shape depends on the classes."""
        return ("head.weight", "head.bias")

    def position_tables(self) -> dict[str, tuple[int, tuple[int, int]]]:
        """Flat position tables by parameter name: rows before the grid, and the grid."""
        return {"pos_embed": (1, self.grid)}

    def parameter_blocks(self) -> dict[str, str]:
        """A predictor learns at the rate of the block behind it."""
        places = [(cut, i) for i in range(len(self.blocks)) for cut in self._cuts_before(i)]
        return {
            f"predictors.{cut}.{name}": f"blocks.{i}"
            for cut, i in places
            for name, _ in self.predictors[cut].named_parameters()
        }

    def translate(self, state: State) -> tuple[State, str] | None:
        """Weights of a plain ViT or DeiT are all of ours but the predictors; None where they are not known."""
        if "cls_token" not in state or any(name.startswith("predictors.") for name in state):
            return None
        return state, "the names of a ViT"

    def _cuts_before(self, i: int) -> list[int]:
        depth = len(self.blocks)
        return [cut for cut in range(CUTS) if (cut + 1) * depth // (CUTS + 1) == i]

    def _embed(self, x_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        x_BND = to_tokens(self.patch_embed(x_BCHW))
        x_BPD = torch.cat([self.cls_token.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        return self.pos_drop(x_BPD + resize_position_table(self.pos_embed, grid, old_grid=self.grid, prefix=1))

    def _grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        if any(extent % self.patch_size or extent < self.patch_size for extent in size):
            problem = "does not divide into patches"
            raise size_error("dynamic_vit", size, problem, f"Use a multiple of {self.patch_size}")
        return size[0] // self.patch_size, size[1] // self.patch_size

    def _fetch(self, patches_depth_heads_ratio: tuple[float, ...], in_chans: int, size: tuple[int, int]) -> None:
        width = self.head.in_features
        if width not in _PUBLISHED or list(patches_depth_heads_ratio) != [16, 12, width // 64, 4]:
            problem = "no published weights are of this size"
            known = ", ".join(f"{width} and {width // 64}" for width in _PUBLISHED)
            remedy = f"Use patches of 16, 12 blocks, mlp_ratio 4, embed_dim and num_heads of {known}"
            raise UsageError("U208", "option pretrained", problem, remedy)
        published = create_network(
            _PUBLISHED[width], in_chans=in_chans, image_size=size, pretrained=True, num_classes=0
        )
        self.load_state_dict(self.state_dict() | published.state_dict(), strict=True)


dynamic_vit = DynamicViT


def draw(logit_BN2: Tensor) -> Tensor:
    """Which tokens go on, drawn by the softmax of their logits: ``(B, N, 2) -> (B, N)`` of zeros and ones.

    The gradient is that of the softmax of the noisy logits (straight-through Gumbel-softmax at temperature 1).
    """
    return F.gumbel_softmax(logit_BN2.log_softmax(dim=2), hard=True)[:, :, 0]


def _check(embed_dim: int, depth: int, num_heads: int) -> None:
    if num_heads < 1 or embed_dim % num_heads:
        raise UsageError("U208", "option num_heads", f"{embed_dim} channels do not divide by {num_heads}", "Change one")
    if depth <= CUTS:
        raise UsageError("U208", "option depth", f"{depth} blocks have no room for {CUTS} cuts", "Choose 4 or more")
    if embed_dim < 4:
        raise UsageError("U208", "option embed_dim", f"the predictors cannot quarter {embed_dim}", "Choose 4 or more")
