"""The drawn chest behind the phantom: attenuation of a frontal view, with named, patient-specific parts.

Everything is a sum of soft analytic shapes in the body frame: u to the right of the picture (the patient's left)
and v downwards, both -1..1 over an unshifted image. Attenuation is in arbitrary units in which soft tissue against
aerated lung is about 0.4. Random draws never depend on the image size, so one seed is one anatomy at any size.

Shapes: H, W image rows and columns; all fields are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw


@dataclass(frozen=True)
class Patient:
    """What stays the same in every image of one person. Lengths in body-frame units."""

    age: int
    sex: str
    cage_width: float
    cage_top: float
    lung_floor: tuple[float, float]
    dome_curve: float
    hilum_gap: float
    heart: tuple[float, float, float, float]
    aorta: float
    rib_gap: float
    rib_drop: float
    rib_phase: float
    bone: float
    clavicle_tilt: float
    soft_tissue: float
    breast: tuple[float, float, float]
    nipples: float
    vessels: float
    tree: int


@dataclass(frozen=True)
class Pose:
    """What changes from one exposure to the next."""

    shift: tuple[float, float]
    turn: float
    zoom: float
    breath: float
    view: str

    def to_image(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Body frame to image frame (-1..1 both)."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        return self.zoom * (c * u - s * v) + self.shift[0], self.zoom * (s * u + c * v) + self.shift[1]

    def grid(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """``(H, W)`` body coordinates of every pixel centre."""
        x, y = _image_grid(size)
        c, s = np.float32(np.cos(self.turn) / self.zoom), np.float32(np.sin(self.turn) / self.zoom)
        x, y = x - np.float32(self.shift[0]), y - np.float32(self.shift[1])
        return c * x + s * y, c * y - s * x


def draw_patient(rng: np.random.Generator) -> Patient:
    """A person, drawn without regard to the label."""
    female = rng.random() < 0.5
    between = rng.uniform
    return Patient(
        age=int(between(20, 90)),
        sex="F" if female else "M",
        cage_width=between(0.70, 0.84) - 0.03 * female,
        cage_top=between(-0.86, -0.74),
        lung_floor=(between(0.36, 0.52), between(0.42, 0.58)),
        dome_curve=between(0.6, 1.5),
        hilum_gap=between(0.09, 0.15),
        heart=(between(0.08, 0.18), between(0.16, 0.30), between(0.24, 0.36), between(0.24, 0.33)),
        aorta=between(0.07, 0.13),
        rib_gap=between(0.145, 0.185),
        rib_drop=between(0.25, 0.55),
        rib_phase=between(0, 1),
        bone=between(0.045, 0.10),
        clavicle_tilt=between(-0.02, 0.18),
        soft_tissue=between(0.45, 0.65),
        breast=(between(0.28, 0.48), between(0.22, 0.50), between(0.03, 0.10) if female else between(0.0, 0.015)),
        nipples=between(0.03, 0.10) if rng.random() < 0.35 else 0.0,
        vessels=between(0.10, 0.22),
        tree=int(rng.integers(2**31)),
    )


def draw_pose(rng: np.random.Generator, supine_share: float) -> Pose:
    """An exposure; ``supine_share`` is the share of AP views, which breathe in less and magnify the heart."""
    supine = rng.random() < supine_share
    return Pose(
        shift=(float(rng.normal(0, 0.035)), float(rng.normal(0.0, 0.04))),
        turn=float(rng.normal(0, 0.035 if supine else 0.02)),
        zoom=float(rng.uniform(0.90, 1.08)),
        breath=float(rng.normal(-0.10 if supine else 0.0, 0.04)),
        view="AP" if supine else "PA",
    )


def lung_field(patient: Patient, pose: Pose, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Soft 0..1 membership in the two lungs, at any body coordinates."""
    side = np.abs(u)
    bottom = 1.05
    middle, half = (bottom + patient.cage_top) / 2, (bottom - patient.cage_top) / 2
    cage = (side / patient.cage_width) ** 2 + np.abs((v - middle) / half) ** 3
    right, left = patient.lung_floor
    floor = np.where(u < 0, np.float32(right), np.float32(left)) + np.float32(pose.breath)
    dome = floor + np.float32(patient.dome_curve) * (side - 0.38) ** 2
    medial = patient.hilum_gap + 0.05 * _step((v + 0.15) / 0.15) - 0.02 * _step((-0.5 - v) / 0.1)
    return _step((1 - cage) / 0.05) * _step((dome - v) / 0.012) * _step((side - medial) / 0.018)


def attenuation(patient: Patient, pose: Pose, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Healthy attenuation ``(H, W)``, the aerated part of the lung 0..1 ``(H, W)``, and the body 0..1 ``(H, W)``."""
    u, v = pose.grid(size)
    side = np.abs(u)
    width = 0.26 + 0.80 * _step((v + 0.86 - 0.10 * side) / 0.045) - 0.10 * _step((v + 0.15) / 0.15)
    body = _step((width - side) / 0.012)
    rounded = np.sqrt(np.clip(1 - (side / (width + 0.02)) ** 2, 0, 1))
    total = body * (0.12 + patient.soft_tissue * (0.35 + 0.65 * rounded))
    total += body * 0.10 * _step((v - 0.5) / 0.12)

    lung = lung_field(patient, pose, u, v)
    heart = _heart(patient, pose, u, v)
    aerated = lung * (1 - 0.85 * heart)
    depth = np.sqrt(np.clip(1 - (side / (patient.cage_width * 1.05)) ** 2, 0, 1))
    total -= aerated * (0.26 + 0.16 * depth)
    total += 0.05 * heart * body

    mediastinum = _step((patient.hilum_gap + 0.03 - side) / 0.03) * body
    spine = _step((0.085 - side) / 0.015) * (0.75 + 0.25 * np.sin(v * 42 + patient.rib_phase * 6)) * body
    total += 0.06 * mediastinum + 0.7 * patient.bone * spine
    total -= 0.07 * _bump(u / 0.038) * _step((-0.28 - v) / 0.05) * body
    knob = ((u - patient.hilum_gap) / patient.aorta) ** 2 + ((v + 0.36) / (patient.aorta * 1.2)) ** 2
    total += 0.10 * _step((1 - knob) / 0.25) * lung
    bubble = ((u - 0.38) / 0.16) ** 2 + ((v - patient.lung_floor[1] - pose.breath - 0.20) / 0.08) ** 2
    total -= 0.12 * _step((1 - bubble) / 0.35) * (1 - lung)

    total += patient.bone * _ribs(patient, pose, side, v) * body
    total += 1.4 * patient.bone * _clavicles(patient, side, v) * body
    total += _shoulder_blades(patient, pose, side, v) * patient.bone * body
    total += _breasts(patient, side, v)
    total += patient.vessels * vessel_tree(patient, pose, size) * aerated
    return total.astype(np.float32), aerated.astype(np.float32), body.astype(np.float32)


def vessel_tree(patient: Patient, pose: Pose, size: int) -> np.ndarray:
    """``(H, W)`` 0..1: branching lines that thin out from both hila, drawn at twice the size."""
    canvas = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(canvas)
    for starts, ends, width, ink in _branches(patient):
        x0, y0 = pose.to_image(starts[:, 0], starts[:, 1])
        x1, y1 = pose.to_image(ends[:, 0], ends[:, 1])
        lines = ((np.stack([x0, y0, x1, y1], 1) + 1) * size).tolist()
        for line in lines:
            pen.line(line, fill=ink, width=max(1, round(width * size)))
    return np.asarray(canvas.reduce(2), dtype=np.float32) / 255


def cloud(rng: np.random.Generator, size: int, cells: tuple[int, ...], gain: float = 0.6) -> np.ndarray:
    """``(H, W)`` smooth noise of about unit deviation: octaves of ``cells`` per side, each ``gain`` of the last."""
    total = np.zeros((size, size), dtype=np.float32)
    weight, power = 1.0, 0.0
    for n in cells:
        grid = rng.standard_normal((n, n), dtype=np.float32)
        total += weight * np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))
        power += 0.6 * weight**2
        weight *= gain
    return total / np.float32(np.sqrt(power))


def spot(u: np.ndarray, v: np.ndarray, centre: tuple[float, float], radius: float, edge: float) -> np.ndarray:
    """Round patch 0..1 with an edge of relative softness ``edge``."""
    distance = np.sqrt((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / radius
    return _step((1 - distance) / edge)


def segment(
    u: np.ndarray, v: np.ndarray, start: tuple[float, float], end: tuple[float, float], width: float
) -> np.ndarray:
    """Soft line 0..1 between two points."""
    du, dv = end[0] - start[0], end[1] - start[1]
    along = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv), 0, 1)
    return _bump(np.sqrt((u - start[0] - along * du) ** 2 + (v - start[1] - along * dv) ** 2) / width)


@lru_cache(maxsize=2)
def _branches(patient: Patient) -> list[tuple[np.ndarray, np.ndarray, float, int]]:
    """Generation by generation: starts and ends ``(n, 2)``, width, ink. The finest are drawn first."""
    rng = np.random.default_rng(patient.tree)
    side = np.repeat([-1.0, 1.0], 9)
    heading = np.tile(np.linspace(-1.25, 1.35, 9), 2) + rng.normal(0, 0.1, 18)
    start = np.stack([side * (patient.hilum_gap + 0.02), -0.12 + 0.1 * heading], 1)
    generations = []
    width = 0.030
    for ink in (230, 200, 170, 140):
        length = rng.uniform(0.10, 0.19, len(side))[:, None]
        end = start + length * np.stack([side * np.cos(heading), np.sin(heading)], 1)
        generations.append((start, end, width, ink))
        width *= 0.70
        forks = rng.random(len(side)) < 0.75
        fork = heading + rng.choice([-1, 1], len(side)) * rng.uniform(0.4, 0.8, len(side))
        heading = np.concatenate([heading + rng.normal(0, 0.20, len(side)), fork[forks]])
        start, side = np.concatenate([end, end[forks]]), np.concatenate([side, side[forks]])
    return generations[::-1]


def _heart(patient: Patient, pose: Pose, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A pear: an ellipse that leans to the left of the patient and runs up into the great vessels."""
    cu, cv, ru, rv = patient.heart
    growth = 1.12 if pose.view == "AP" else 1.0
    du, dv = u - cu, v - cv - 0.7 * pose.breath
    du = du + 0.35 * np.clip(-dv, 0, 1) - 0.25 * np.clip(dv, 0, 1)
    taper = 1 - 0.9 * np.clip(-dv, 0, 0.6)
    return _step((1 - np.sqrt((du / (ru * growth * taper)) ** 2 + np.abs(dv / (rv * 1.25)) ** 3)) / 0.06)


def _ribs(patient: Patient, pose: Pose, side: np.ndarray, v: np.ndarray) -> np.ndarray:
    inside = _step((patient.cage_width * 1.04 - side) / 0.02) * _step((side - 0.10) / 0.02)
    inside *= _step((v + 0.80) / 0.03) * _step((0.75 - v) / 0.1)
    back = _bands((v - patient.rib_drop * (side - 0.18) ** 2) / patient.rib_gap + patient.rib_phase)
    front = _bands((v + 0.55 * side - 0.5 * pose.breath) / (1.15 * patient.rib_gap) + 0.5 * patient.rib_phase)
    return inside * (back + 0.55 * front * _step((side - 0.34) / 0.05) * _step((v + 0.55) / 0.1))


def _bands(phase: np.ndarray) -> np.ndarray:
    """Periodic ribs with brighter borders, as a tube of cortical bone projects."""
    offset = np.abs(phase - np.floor(phase) - 0.5)
    return 0.6 * _step((0.21 - offset) / 0.03) + 0.5 * _bump((offset - 0.19) / 0.035)


def _clavicles(patient: Patient, side: np.ndarray, v: np.ndarray) -> np.ndarray:
    height = -0.60 - patient.clavicle_tilt * side - 0.06 * np.sin(4.5 * side)
    offset = np.abs(v - height)
    ends = _step((side - 0.07) / 0.02) * _step((0.85 - side) / 0.03)
    return ends * (0.7 * _step((0.034 - offset) / 0.008) + 0.5 * _bump((offset - 0.030) / 0.009))


def _shoulder_blades(patient: Patient, pose: Pose, side: np.ndarray, v: np.ndarray) -> np.ndarray:
    inner = (0.60 if pose.view == "AP" else 0.74) + 0.12 * (v + 0.3)
    span = _step((v + 0.68) / 0.04) * _step((0.02 - v) / 0.05)
    return 0.7 * span * _step((side - inner) / 0.012) * _step((inner + 0.25 - side) / 0.05)


def _breasts(patient: Patient, side: np.ndarray, v: np.ndarray) -> np.ndarray:
    centre, height, strength = patient.breast
    shape = np.sqrt(((side - centre) / 0.34) ** 2 + ((v - height + 0.22) / 0.34) ** 2)
    disc = _step((1 - shape) / 0.07) * (0.4 + 0.6 * _step((v - height + 0.25) / 0.15))
    nipple = _step((1 - np.sqrt((side - centre - 0.06) ** 2 + (v - height) ** 2) / 0.034) / 0.15)
    return np.float32(strength) * disc + np.float32(patient.nipples) * nipple


@lru_cache(maxsize=4)
def _image_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def _step(x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 to 1 around 0."""
    return 0.5 + 0.5 * np.tanh(x)


def _bump(x: np.ndarray) -> np.ndarray:
    return np.exp(-x * x)
