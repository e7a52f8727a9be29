"""The second loss of a model that rebuilds its input: mean squared error against the image of the step, in [0, 1].

A model says ``reconstructs = True`` and gives ``train_outputs(x) -> {"logits", "reconstruction"}``. Everything else is
trained through its ``forward``, as it always was.

Shape suffixes: B images of a micro-batch, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from medloom.data.cache import restore
from medloom.data.preprocess import Preprocess


def reconstructs(model: nn.Module) -> bool:
    """Whether the model rebuilds its input in training."""
    return bool(getattr(model, "reconstructs", False))


def reconstruction_error(reconstruction_BCHW: Tensor, x_BCHW: Tensor, preprocess: Preprocess) -> Tensor:
    """Sum over the images of the mean squared error of their pixels, in float32 and on the scale of [0, 1].

    Args:
        x_BCHW: model input, augmented and standardised.
    """
    error_BCHW = reconstruction_BCHW.float() - restore(x_BCHW.float(), preprocess)
    return error_BCHW.square().mean(dim=(1, 2, 3)).sum()
