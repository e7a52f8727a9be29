"""The second loss of a model that rebuilds its input: mean squared error against the image of the step, in [0, 1].

A model says ``reconstructs = True`` and gives ``train_outputs(x) -> {"logits", "reconstruction"}``. Everything else is
trained through its ``forward``, as it always was.

Shape suffixes: B images of a micro-batch, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from medloom.data.cache import restore
from medloom.data.preprocess import Preprocess


class TrainOutputs(nn.Module):
    """``train_outputs`` as a module: several processes average the gradients of what is called through one alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        outputs: dict[str, Tensor] = self.model.train_outputs(x_BCHW)  # type: ignore[operator]
        return outputs


def reconstructs(model: nn.Module) -> bool:
    """Whether the model rebuilds its input in training."""
    return bool(getattr(model, "reconstructs", False))


def trained_part(model: nn.Module) -> nn.Module:
    """What a training step calls."""
    return TrainOutputs(model) if reconstructs(model) else model


def outputs_of(net: nn.Module, x_BCHW: Tensor) -> dict[str, Tensor]:
    """``logits``, and ``reconstruction`` where there is one."""
    outputs = net(x_BCHW)
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def reconstruction_error(reconstruction_BCHW: Tensor, x_BCHW: Tensor, preprocess: Preprocess) -> Tensor:
    """Sum over the images of the mean squared error of their pixels, in float32 and on the scale of [0, 1].

    Args:
        x_BCHW: model input, augmented and standardised.
    """
    error_BCHW = reconstruction_BCHW.float() - restore(x_BCHW.float(), preprocess)
    return error_BCHW.square().mean(dim=(1, 2, 3)).sum()
