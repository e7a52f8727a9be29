"""The measure by which TransUNet's table was made, to make that table again and for nothing else.

It rewards what it should not: where nothing is to be found and something is answered, the case is perfect, and where
something is missed, its distance is 0. ``segmentation.score_case`` is what this project judges by.

Reference: Chen et al. 2021, arXiv 2102.04306 (77.48 and 31.69 on Synapse), as its code computes it; distances as
``hd95`` of medpy.
"""

from __future__ import annotations

import numpy as np

from medloom.evaluation.segmentation import dice
from medloom.evaluation.surfaces import surface_distances

Array = np.ndarray


def transunet_dice_hd95(prediction: Array, truth: Array) -> tuple[float, float]:
    """Dice and HD95 of one structure in one case, with the rules of TransUNet's code for empty masks.

    Only for a comparison with numbers that were published so. Its means are better than ``score_case``'s for the same
    masks, and improve as a model finds less or invents more.

    Args:
        prediction, truth: masks ``(*S)`` of equal shape; what is above 0 belongs to the structure.

    Returns:
        Both masks hold something: Dice, and the 95th percentile of both directed sets of distances pooled, in voxels
        whatever their spacing. Only the prediction does: 1 and 0. The prediction is empty: 0 and 0, also where that is
        right.

    Raises:
        ValueError: masks of unequal shape (a fault of the caller).
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of {prediction.shape} and {truth.shape}")
    answer, wanted = prediction > 0, truth > 0
    if not answer.any():
        return 0.0, 0.0
    if not wanted.any():
        return 1.0, 0.0
    distances = surface_distances(wanted, answer, (1.0,) * truth.ndim)
    return dice(wanted, answer), float(np.percentile(np.concatenate(distances), 95))
