"""The parts of a recipe that speak of masks and volumes; ``config`` reads them from YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medloom.config_parts import Fraction, Millimetres, Part, Positive

Share = Annotated[float, Field(ge=0, le=1)]


class VolumeConfig(Part):
    """How a volume becomes model input; its array runs to the right, anterior and superior."""

    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = Field(
        default=None, description="mm along right, anterior, superior that all cases are resampled to; None: their own"
    )
    intensity: Literal["percentile", "window", "zscore"] = Field(
        default="percentile", description="of each case, or window: the same two values for all (CT)"
    )
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = Field(default=None, description="lowest and highest value, for window")
    prefer: Literal["refuse", "sform", "qform"] = Field(
        default="refuse", description="which of the two places of a NIfTI file counts where they differ"
    )


class SegmentationConfig(Part):
    """How masks are learnt and answered."""

    patch: tuple[Positive, ...] | None = Field(
        default=None, description="pixels or voxels per axis of a training patch; None: the whole image"
    )
    foreground: Share = Field(default=0.33, description="share of the patches that are centred in a structure")
    patches_per_case: Positive = Field(default=1, description="patches of a case in an epoch")
    loss: Literal[
        "dice_ce", "dice", "cross_entropy", "tversky", "focal_tversky", "generalized_dice", "dice_topk",
        "dice_boundary", "dice_cldice",
    ] = "dice_ce"  # fmt: skip
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    other_weight: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="of cross-entropy, top-k, boundary or centreline beside the Dice"
    )
    include_background: bool = False
    squared: bool = Field(default=False, description="squares in the denominator of the Dice, as TransUNet has it")
    batch_dice: bool = Field(default=False, description="one Dice over the batch instead of one per image")
    tversky: tuple[Share, Share] = Field(default=(0.3, 0.7), description="weights of false positives and negatives")
    focus: Annotated[float, Field(gt=0)] = Field(default=0.75, description="exponent of focal_tversky")
    top: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="share of the pixels of dice_topk")
    deep_supervision: bool = True
    overlap: Fraction = Field(default=0.5, description="of neighbouring windows when a case is answered")
    mirror: bool = Field(default=False, description="average the answers of a case and its mirror images")
    keep_largest: Literal["off", "auto", "on"] = Field(
        default="off", description="only the largest piece of each structure; auto: where validation says that it helps"
    )
    tolerance: Millimetres = Field(
        default=2.0, description="mm within which two surfaces agree; pixels where no spacing is known"
    )
