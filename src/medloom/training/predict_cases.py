"""Answers of a network in torch for whole cases: images at once, volumes through windows.

Shape suffixes: B windows of a call, C channels, K classes, S spatial axes of a case, P axes of a window.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from medloom.config_segmentation import SegmentationConfig
from medloom.data.case_answer import Windows, answer_case
from medloom.data.case_restore import Case, answer_on_file
from medloom.data.preprocess import Preprocess
from medloom.data.volume_preprocess import VolumePreprocess
from medloom.training.precision import autocast


def case_logits(
    model: nn.Module,
    pixels_CS: np.ndarray,
    preprocess: Preprocess | VolumePreprocess,
    config: SegmentationConfig,
    classes: int,
    device: torch.device,
    amp: str = "off",
) -> np.ndarray:
    """``(K, *S)`` float32 logits of one case on the grid of the model.

    Args:
        model: in evaluation mode.
        pixels_CS: as ``case_cache`` holds them: uint8 of an image, uint16 of a volume.
    """
    return answer_case(pixels_CS, preprocess, windows_of(config), classes, _answering(model, device, amp))


def case_positions(
    model: nn.Module,
    pixels_CS: np.ndarray,
    preprocess: Preprocess | VolumePreprocess,
    case: Case,
    config: SegmentationConfig,
    classes: int,
    device: torch.device,
) -> np.ndarray:
    """Positions uint8 on the grid and in the order of the file that ``pixels_CS`` was made from."""
    return answer_on_file(pixels_CS, preprocess, case, windows_of(config), classes, _answering(model, device, "off"))


def windows_of(config: SegmentationConfig) -> Windows:
    """How the recipe wants a case answered."""
    return Windows(config.patch, config.overlap, config.mirror)


def _answering(model: nn.Module, device: torch.device, amp: str) -> Callable[[np.ndarray], np.ndarray]:
    @torch.inference_mode()
    def answer(x_BCP: np.ndarray) -> np.ndarray:
        order = torch.contiguous_format if x_BCP.ndim == 5 else torch.channels_last
        x = torch.from_numpy(np.ascontiguousarray(x_BCP)).to(device).contiguous(memory_format=order)
        with autocast(device, amp):
            logits_BKP = model(x)
        return np.ascontiguousarray(logits_BKP.float().cpu().numpy())

    return answer
