"""What lies on the drawn chest: the opacities that make the label, and the distractors that both classes have.

u and v are body-frame coordinates (phantom_anatomy), all fields ``(H, W)`` float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medloom.data.phantom_anatomy import Patient, Pose, cloud, lung_field, segment, spot

# Contrast of an opacity as a share of the step from aerated lung to soft tissue: from beyond notice to plain.
LESION_CONTRAST = (0.30, 1.10)
# Half axes of an opacity, as a share of half the image's side.
LESION_RADII = (0.09, 0.22)
_LUNG_STEP = 0.36


@dataclass(frozen=True)
class Opacity:
    """One consolidation of a patient, in body-frame units (phantom_anatomy)."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    turn: float
    strength: float
    seed: int


def draw_opacities(
    rng: np.random.Generator,
    patient: Patient,
    contrast: tuple[float, float],
    radii: tuple[float, float] = LESION_RADII,
) -> list[Opacity]:
    """One to three opacities within the lungs, faint ones as often as strong ones on a logarithmic scale."""
    low, high = contrast
    opacities = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))):
        u, v = rng.uniform(-0.8, 0.8, 64), rng.uniform(-0.65, 0.6, 64)
        # Deep expiration must not push it below the diaphragm.
        room = lung_field(patient, Pose((0, 0), 0, 1, -0.2, "AP"), u, v)
        heart_u, heart_v, width, height = patient.heart
        room = room * (((u - heart_u) / (width + 0.05)) ** 2 + ((v - heart_v) / (height + 0.15)) ** 2 > 1)
        best = int(np.argmax(room > 0.9)) if (room > 0.9).any() else int(np.argmax(room))
        opacities.append(
            Opacity(
                centre=(float(u[best]), float(v[best])),
                radii=(float(rng.uniform(*radii)), float(rng.uniform(*radii))),
                turn=float(rng.uniform(0, np.pi)),
                strength=float(low * (high / low) ** rng.uniform()),
                seed=int(rng.integers(2**31)),
            )
        )
    return opacities


def place(
    rng: np.random.Generator, opacity: Opacity, u: np.ndarray, v: np.ndarray, aerated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Attenuation that the opacity adds in this exposure, and its mask: more than half of its full strength."""
    size = u.shape[0]
    covered = _shape(opacity, u, v, size) * aerated
    texture = cloud(np.random.default_rng(opacity.seed + 1), size, (16, 32), 0.8)
    strength = np.float32(_LUNG_STEP * opacity.strength * np.exp(rng.normal(0, 0.1)))
    return strength * covered * np.clip(1 + 0.35 * texture, 0, 2), covered > 0.5


def _shape(opacity: Opacity, u: np.ndarray, v: np.ndarray, size: int) -> np.ndarray:
    """0..1: an ellipse whose border wanders, soft at the edge."""
    c, s = np.float32(np.cos(opacity.turn)), np.float32(np.sin(opacity.turn))
    du, dv = u - opacity.centre[0], v - opacity.centre[1]
    distance = np.sqrt(((c * du + s * dv) / opacity.radii[0]) ** 2 + ((c * dv - s * du) / opacity.radii[1]) ** 2)
    border = cloud(np.random.default_rng(opacity.seed), size, (10, 20), 0.7)
    return 0.5 + 0.5 * np.tanh((1 + 0.25 * border - distance) / 0.30)


def distractors(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, aerated: np.ndarray, body: np.ndarray, pose: Pose
) -> np.ndarray:
    """What normal and diseased chests have alike and what could be taken for an opacity."""
    size = u.shape[0]
    extra = 0.022 * cloud(rng, size, (5, 10, 20, 40), 0.8) * body
    extra += 0.020 * cloud(rng, size, (24, 48), 0.8) * aerated
    for _ in range(int(rng.poisson(1.0))):  # vessels end on, old granulomas
        place = float(rng.uniform(-0.7, 0.7)), float(rng.uniform(-0.6, 0.4))
        extra += np.float32(rng.uniform(0.04, 0.14)) * spot(u, v, place, float(rng.uniform(0.018, 0.035)), 0.25)
    for _ in range(int(rng.poisson(1.0))):  # muscle, folds, pads: soft patches outside the lungs
        place = float(rng.uniform(-0.95, 0.95)), float(rng.uniform(-0.7, 0.95))
        patch = spot(u, v, place, float(rng.uniform(0.1, 0.22)), 0.4)
        extra += np.float32(rng.uniform(0.03, 0.15)) * patch * (body - aerated).clip(0, 1)
    if rng.random() < 0.25:  # a band of atelectasis above the diaphragm
        left, height, tilt = rng.uniform(0.2, 0.4) * rng.choice([-1, 1]), rng.uniform(0.1, 0.4), rng.normal(0, 0.05)
        ends = (float(left), float(height)), (float(left * 1.8), float(height + tilt))
        extra += np.float32(rng.uniform(0.04, 0.10)) * segment(u, v, *ends, 0.014) * aerated
    if rng.random() < (0.6 if pose.view == "AP" else 0.08):  # a monitoring lead
        start = float(rng.uniform(-0.7, 0.7)), float(rng.uniform(-0.3, 0.4))
        end = float(rng.choice([-1, 1]) * rng.uniform(0.6, 1.0)), float(rng.uniform(-1, 0.2))
        extra += 0.16 * segment(u, v, start, end, 0.010) + 0.25 * spot(u, v, start, 0.035, 0.2)
    return extra.astype(np.float32)
