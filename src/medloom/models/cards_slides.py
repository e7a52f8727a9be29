"""The cards of the systems of the Padova slides; as in ``models.cards``."""

from __future__ import annotations

_SLIDES = (
    "Pham and Hoang, Cross-attention and reconstruction-regularized transformers for multi-label chest X-ray "
    "classification, University of Padova, 2025/26, slides; no paper, no code"
)
_CRITICISM = (
    "one run, no interval, latency without batch size; the slides define accuracy as exact match but print label-wise "
    "values, and 0.947 is what predicting nothing gives on ChestMNIST; they swap the sizes of validation (11,219) and "
    "test (22,433)"
)
_REBUILT = (
    "decoder: one linear layer and a sigmoid, behind the last norm, against the augmented input in [0, 1]; weight of "
    "its error not given, 0.1 here (loss.reconstruction), 0 is the ablation; dropout 0.1 before the classifier"
)
_DBCT_READING = (
    "one cross-attention from transformer tokens to CNN tokens, residual, one norm, mean, classifier; query=cnn turns "
    "it round, trunk=NAME takes any timm network for the CNN branch; focal loss with the usual signs (gamma 2, "
    "alpha 0.25)"
)
_DBCT_CRITICISM = (
    "not identifiable: both presets reproduce all three published counts; the printed sign of the focal loss's second "
    f"term is wrong as it stands; {_CRITICISM}"
)

SLIDES: dict[str, dict[str, str | int]] = {
    "rr_vit": {
        "summary": "RR-ViT, small transformer without feed-forward that also rebuilds its input",
        "parameters": 415_810,
        "macs": 856_065_280,
        "source": _SLIDES,
        "reading": "the one configuration that gives 292,302, 316,878 and 384,462 parameters at 64, 128 and 224 px (14 "
        f"classes, 1 channel): patch 8, 128 wide, 4 blocks of 4 heads, final norm; {_REBUILT}",
        "criticism": f"blocks without feed-forward; {_CRITICISM}",
    },
    "hybrid_rr_vit": {
        "summary": "Hybrid RR-ViT, transformer on a convolutional stem that also rebuilds its input",
        "parameters": 5_201_330,
        "macs": 53_996_384_768,
        "source": _SLIDES,
        "reading": "stem 32-64-256, 3x3, biases, batch norm, ReLU; 8 blocks of 8 heads, MLP 512: 4,458,334, 4,654,942 "
        "and 5,195,614 parameters at 64, 128 and 224 px (14 classes, 1 channel). Keras prints 704 more (4,459,038, "
        "4,655,646, 5,196,318), since it counts the running statistics of batch norm, and only so 4.46 and 4.66 M come "
        f"out; {_REBUILT}",
        "criticism": "16 times as many tokens as patches of 16: its authors had no memory for 224 px, which the fused "
        f"kernel and checkpoint_blocks give; {_CRITICISM}",
    },
    "dbct": {
        "summary": "DBCT, transformer branch that attends to a light CNN branch (or trunk=NAME); preset A",
        "parameters": 2_583_010,
        "macs": 1_325_249_024,
        "source": _SLIDES,
        "reading": "2,405,582, 2,405,582 and 2,454,734 parameters at 64, 128 and 224 px (14 classes, 1 channel): fixed "
        "positions, patches of 8 up to 128 px and 16 above, 256 wide, 4 blocks of 8 heads, MLP 512, CNN 16-32; "
        f"{_DBCT_READING}",
        "criticism": _DBCT_CRITICISM,
    },
    "dbct_keras": {
        "summary": "DBCT, preset B: one narrow block and a wide classifier, as Keras' tutorial has them",
        "parameters": 2_444_514,
        "macs": 1_797_928_960,
        "source": _SLIDES,
        "reading": "2,411,470, 2,414,542 and 2,448,334 parameters at 64, 128 and 224 px (14 classes, 1 channel): "
        "learned positions, patches of 4 at 64 px and 8 above, 64 wide, one block of 4 heads of 64, classifier "
        "2048-1024; "
        f"{_DBCT_READING}",
        "criticism": "its one block and wide classifier contradict the slides' 'stacked blocks' and 'a fully connected "
        f"layer'; {_DBCT_CRITICISM}",
    },
}
