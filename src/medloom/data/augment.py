"""Random changes to training images: batched, on the device, one draw per image.

Photometry is one table per image, applied to the stored 8-bit values; geometry is one affine warp of the result, so an
image is interpolated once and never rounded on the way. Blur, noise and erasing follow. Changes of stain, hue and
saturation mix the channels, which no table can: they come first, by one implementation for both paths, and their result
is stored in 8 bits again, as a scanner would. On the CPU the warp is
OpenCV's where it is installed (extra ``fast``), in threads, as it leaves the interpreter lock; elsewhere it is torch's.
Both give the same picture: no pixel differs by more than 0.001 with OpenCV 5 (a test; version 4 looks up its
coordinates in steps of 1/32 pixel). The bytes are the same only on the same path.

What a warp brings in from outside is black: that is what a collimated radiograph has outside its field, what the
``pad`` rule of the preprocessing has around it, and nothing is invented by it (mirroring would invent anatomy,
replicating would smear markers into lines).

Shapes: B batch, C stored channels (1 or 3), H height, W width.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medloom.config import AugmentConfig
from medloom.data.draws import NOISE_LENGTH, Draws, blur_kernels, draw, erase_boxes, inverse_affine, tone_curves
from medloom.data.stain import chroma_matrices, densities, stain_maps
from medloom.errors import UsageError

__all__ = ["Draws", "augment", "augment_opencv", "augment_torch", "backend", "draw", "recolour", "warp"]

BLACK = 0
"""Stored value of what lies outside the image."""


def backend(device: torch.device | str) -> str:
    """``opencv`` or ``torch``: which path ``augment`` takes, for the record of a run's environment."""
    return "opencv" if torch.device(device).type == "cpu" and _opencv() is not None else "torch"


def augment(x_BCHW: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Change a batch as drawn.

    Args:
        x_BCHW: uint8, on any device.
        draws: one row per image.
        config: the ranges that ``draws`` came from; what is off in it costs nothing.

    Returns:
        float32 ``(B, C, H, W)`` in [0, 1] on the same device, ready for ``medloom.data.cache.finish``.

    Raises:
        UsageError: U226, changes of colour are asked of grey images.
    """
    if x_BCHW.dtype != torch.uint8 or x_BCHW.ndim != 4 or len(x_BCHW) != len(draws):
        raise ValueError(f"expected uint8 (B, C, H, W) with B = {len(draws)}, got {x_BCHW.dtype} {tuple(x_BCHW.shape)}")
    if backend(x_BCHW.device) == "opencv":
        return augment_opencv(x_BCHW, draws, config)
    return augment_torch(x_BCHW, draws, config)


def augment_opencv(x_BCHW: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """The CPU path. As many threads as torch has."""
    cv2 = _opencv()
    if cv2 is None:
        raise ModuleNotFoundError("OpenCV is not installed (extra fast)")
    B, C, H, W = x_BCHW.shape
    x_BHWC = recolour(x_BCHW, draws, config).permute(0, 2, 3, 1).numpy()
    out_BCHW = torch.empty((B, C, H, W), dtype=torch.float32)
    result_BCHW = out_BCHW.numpy()
    matrices, curves = inverse_affine(draws, H, W), tone_curves(draws)
    moved = ~np.isclose(matrices, np.eye(2, 3), atol=1e-9).all(axis=(1, 2))
    kernels = blur_kernels(draws, config.blur) if config.blur > 0 else None
    noise = _endless_noise(C * H * W) if config.noise > 0 else None
    boxes = erase_boxes(draws, H, W)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def work(rows: range) -> None:
        for i in rows:
            target_HW = result_BCHW[i, 0] if C == 1 else None
            black = float(curves[i, BLACK])
            picture = np.ascontiguousarray(x_BHWC[i, :, :, 0] if C == 1 else x_BHWC[i])
            if moved[i] or kernels is not None:
                picture = cv2.LUT(picture, curves[i])
                if moved[i]:
                    last = target_HW if kernels is None else None
                    picture = cv2.warpAffine(
                        picture, matrices[i], (W, H), last, flags, cv2.BORDER_CONSTANT, (black,) * C
                    )
                if kernels is not None:
                    picture = cv2.sepFilter2D(
                        picture, -1, kernels[i], kernels[i], target_HW, borderType=cv2.BORDER_REPLICATE
                    )
            else:
                picture = cv2.LUT(picture, curves[i], target_HW)
            if picture is not target_HW:
                result_BCHW[i] = picture[None] if C == 1 else picture.transpose(2, 0, 1)
            if noise is not None:
                stretch = noise[draws.noise_start[i] :][: C * H * W]
                result_BCHW[i] += stretch.reshape(C, H, W) * np.float32(draws.noise[i])
            if noise is not None or kernels is not None:
                np.clip(result_BCHW[i], 0, 1, out=result_BCHW[i])
            top, bottom, left, right = boxes[i]
            result_BCHW[i, :, top:bottom, left:right] = draws.erase_value[i]

    threads = min(torch.get_num_threads(), B)
    if threads <= 1:
        work(range(B))
    else:
        bounds = np.linspace(0, B, threads + 1).astype(int)
        list(_pool(threads).map(work, [range(a, b) for a, b in pairwise(bounds)]))
    return out_BCHW


def augment_torch(x_BCHW: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """The path of every other device, and of a CPU without OpenCV."""
    B, C, H, W = x_BCHW.shape
    device = x_BCHW.device
    curves_B256 = torch.from_numpy(tone_curves(draws)).to(device)
    flat = recolour(x_BCHW, draws, config).reshape(B, -1).long()
    # Black becomes 0 for the sampling, as it pads with zeros, and comes back after it.
    black_B111 = curves_B256[:, BLACK].view(B, 1, 1, 1)
    x_BCHW = curves_B256.gather(1, flat).view(B, C, H, W) - black_B111
    grid = F.affine_grid(_normalised(inverse_affine(draws, H, W), H, W).to(device), [B, C, H, W], align_corners=False)
    x_BCHW = F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + black_B111
    if config.blur > 0:
        kernels = torch.from_numpy(blur_kernels(draws, config.blur)).to(device).repeat_interleave(C, 0)
        K = kernels.shape[1]
        x_1GHW = F.pad(x_BCHW, (K // 2,) * 4, mode="replicate").reshape(1, B * C, H + K - 1, W + K - 1)
        x_1GHW = F.conv2d(x_1GHW, kernels.view(-1, 1, 1, K), groups=B * C)
        x_BCHW = F.conv2d(x_1GHW, kernels.view(-1, 1, K, 1), groups=B * C).view(B, C, H, W)
    return _noise_and_erase(x_BCHW, draws, config)


def warp(x_BHW: Tensor, draws: Draws) -> Tensor:
    """Masks moved as their images are, float32 ``(B, H, W)``; nothing lies outside."""
    B, H, W = x_BHW.shape
    matrices = _normalised(inverse_affine(draws, H, W), H, W).to(x_BHW.device)
    grid = F.affine_grid(matrices, [B, 1, H, W], align_corners=False)
    return F.grid_sample(x_BHW[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]


def recolour(x_BCHW: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Stain, then hue and saturation, uint8 to uint8 ``(B, 3, H, W)``; the batch itself where all of them are off.

    Raises:
        UsageError: U226, the images are grey.
    """
    chroma = config.hue > 0 or config.saturation > 0
    if not chroma and config.stain == 0:
        return x_BCHW
    if x_BCHW.shape[1] != 3:
        raise UsageError(
            "U226", "augment", "hue, saturation and stain are of colour images", "Say preprocess.channels=rgb"
        )
    device = x_BCHW.device
    if config.stain > 0:
        matrix, shift = (torch.from_numpy(m).to(device) for m in stain_maps(draws))
        density_BCHW = _mixed(torch.from_numpy(densities()).to(device)[x_BCHW.long()], matrix)
        x = density_BCHW.add_(shift[:, :, None, None]).neg_().exp_().mul_(256).sub_(1)
    else:
        x = x_BCHW.float()
    if chroma:
        x = _mixed(x.clamp_(0, 255), torch.from_numpy(chroma_matrices(draws)).to(device))
    return x.clamp_(0, 255).round_().to(torch.uint8)


def _mixed(x_BCHW: Tensor, matrix_B33: Tensor) -> Tensor:
    """Each image's channels mixed by its own matrix, in a fixed order of sums, so that no batch size changes a bit."""
    rows = [sum(x_BCHW[:, c] * matrix_B33[:, k, c, None, None] for c in range(3)) for k in range(3)]
    return torch.stack(rows, dim=1)  # type: ignore[arg-type]


def _noise_and_erase(x_BCHW: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    B, C, H, W = x_BCHW.shape
    device = x_BCHW.device
    if config.noise > 0:
        start_B1 = torch.from_numpy(draws.noise_start).to(device)[:, None]
        places = (start_B1 + torch.arange(C * H * W, device=device)) % NOISE_LENGTH
        noise_BCHW = _unit_noise(str(device))[places].view(B, C, H, W)
        sigma_B = torch.from_numpy(draws.noise.astype(np.float32)).to(device)
        x_BCHW = x_BCHW + noise_BCHW * sigma_B.view(B, 1, 1, 1)
    if config.noise > 0 or config.blur > 0:
        x_BCHW = x_BCHW.clamp(0, 1)
    if config.erase > 0:
        boxes = torch.from_numpy(erase_boxes(draws, H, W)).to(device)
        row_1H, column_1W = torch.arange(H, device=device)[None], torch.arange(W, device=device)[None]
        inside_BH = (row_1H >= boxes[:, :1]) & (row_1H < boxes[:, 1:2])
        inside_BW = (column_1W >= boxes[:, 2:3]) & (column_1W < boxes[:, 3:])
        inside_B1HW = (inside_BH[:, :, None] & inside_BW[:, None, :])[:, None]
        value_B = torch.from_numpy(draws.erase_value.astype(np.float32)).to(device)
        x_BCHW = torch.where(inside_B1HW, value_B.view(B, 1, 1, 1), x_BCHW)
    return x_BCHW


def _normalised(matrices: np.ndarray, height: int, width: int) -> Tensor:
    """Pixel matrices in the coordinates of ``affine_grid``: -1 to 1 over the outer edges."""
    to_pixel = np.array([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]])
    return torch.from_numpy(
        (np.linalg.inv(to_pixel)[:2, :2] @ (matrices @ to_pixel - to_pixel[:2]) + np.eye(2, 3)).astype(np.float32)
    )


@lru_cache(maxsize=4)
def _unit_noise(device: str) -> Tensor:
    """A fixed stretch of standard normal numbers; images read it from different places, alike on every device."""
    return torch.from_numpy(np.random.default_rng(0x401).standard_normal(NOISE_LENGTH, dtype=np.float32)).to(device)


@lru_cache(maxsize=2)
def _endless_noise(length: int) -> np.ndarray:
    """The same stretch, gone on with from its start for ``length`` more, so that every image is one slice of it."""
    return np.resize(_unit_noise("cpu").numpy(), NOISE_LENGTH + length)


@lru_cache(maxsize=1)
def _opencv() -> ModuleType | None:
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)  # the images of a batch are the unit of parallel work, not the rows of one image
    return cv2


@lru_cache(maxsize=2)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="medloom-augment")
