"""Published results that a report shows beside ours, with what their sample size says about them.

Reference: "The CNN and ViT Fusion Model Based on Hierarchical Adaptive Token Refinement Method in Pneumonia X-ray
Image Classification" (EMITI 2025), table 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from medloom.evaluation.intervals import wilson

TEST_IMAGES = 624
TEST_POSITIVES = 390
MAJORITY = TEST_POSITIVES / TEST_IMAGES


@dataclass(frozen=True)
class Published:
    """One row of table 2; shares, not per cent. ``names`` are our registry's names of the same system."""

    model: str
    names: tuple[str, ...]
    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, images taken as independent."""
        bounds = wilson(self.accuracy * TEST_IMAGES, TEST_IMAGES)
        return bounds.low or 0.0, bounds.high or 1.0

    @property
    def auc_interval(self) -> tuple[float, float]:
        """95 % interval after Hanley and McNeil (Radiology 143:29, 1982), images taken as independent."""
        half = 1.959964 * hanley(self.auc, TEST_POSITIVES, TEST_IMAGES - TEST_POSITIVES)
        return self.auc - half, min(1.0, self.auc + half)


TABLE_2 = (
    Published("ResNet-50", ("resnet50",), 0.873, 0.865, 0.881, 0.873, 0.945),
    Published("Conv2D", ("conv2d",), 0.827, 0.812, 0.845, 0.828, 0.920),
    Published("ViT", ("vit_small", "vit"), 0.851, 0.843, 0.867, 0.854, 0.930),
    Published("HATR (ResNet)", ("hatr_resnet50",), 0.914, 0.908, 0.921, 0.914, 0.960),
    Published("HATR (Conv2D)", ("hatr_conv2d",), 0.882, 0.875, 0.890, 0.882, 0.950),
)

WHAT_IT_MEANS = (
    "The published figures come from one run each on the same 624 test images (234 normal, 390 pneumonia); no "
    "intervals were given. The intervals shown for them are ours: Wilson's for accuracy, Hanley and McNeil's for AUC, "
    "both with images taken as independent, so they are if anything too narrow.",
    "Their validation part had 16 images: one image is 6.25 points, and even 16 of 16 proves no more than 80.6 %. "
    "Curves drawn on it say little about which model fluctuates.",
    "Precision, recall and F1 of the paper fit its accuracy only as macro-averages; ours are macro-averages too. "
    "This reading implies that the best model's pneumonia recall (about 0.90) is below its recall of normals (0.94).",
    "Answering pneumonia every time scores 62.5 % on these images.",
    "The paper counts 5,232 training images; the public folder has 5,216 (1,341 normal, 3,875 pneumonia). Children "
    "aged one to five, one hospital; the training and test normals were acquired differently.",
)


def hanley(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC from two class sizes (Hanley and McNeil 1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return sqrt(spread / (positives * negatives))


def is_the_papers_task(classes: tuple[str, ...], n: int, positives: int) -> bool:
    """Whether a run was scored on what the paper was scored on: the numbers may then stand in one column."""
    return len(classes) == 2 and n == TEST_IMAGES and positives == TEST_POSITIVES
