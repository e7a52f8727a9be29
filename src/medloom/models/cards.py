"""What every registered model is, where it comes from, and what is known against it. Plain data, no torch.

``parameters`` and ``macs`` (multiply-adds of one image, ``models.macs``): default settings, 2 classes, 3 channels, 224
pixels, or ``in_chans`` and ``image_size`` where a card names them; tests count both anew. A card without a ``task``
is that of a classifier of images.
"""

from __future__ import annotations

from medloom.models.cards_hybrids import HYBRIDS
from medloom.models.cards_segmentation import SEGMENTERS
from medloom.models.cards_slides import SLIDES

_TIMM = "github.com/huggingface/pytorch-image-models"
_HATR = "Zhang, The CNN and ViT fusion model based on HATR, EMITI 2025, DOI 10.5220/0014361900004718; no public code"
_HATR_READING = (
    "two scales (2,1) and (3,2) for the claimed multi-scale embedding, of which the paper gives (2,1) alone; "
    "convolutional windows instead of unfold and linear (the same parameters); gates in CBAM order, 16-fold reduction, "
    "7x7, doubled so that they start as the identity; one weight per token and scale; learned positions; "
    "4 blocks of 8 heads"
)
_HATR_CRITICISM = (
    "one run, no interval; validation was 8 + 8 images; published precision, recall and F1 fit macro averages only, "
    "and then imply a recall of pneumonia near 0.90; its table names software that cannot run on the GPU it names; "
    "a plain fine-tuned ResNet reaches 92 to 96 percent on the same test images elsewhere"
)
_PRUNED_CRITICISM = (
    "the plan it follows never trained its scorer and reports a hybrid 14 times slower than its ViT; "
    "what is dropped before the first block cannot be seen again, so the kept tokens must be looked at"
)
_VIT = "Dosovitskiy et al., arXiv 2010.11929; names and layout of timm's vision_transformer"
_VIT_CRITICISM = "from scratch it needs far more images than medical sets have; use published weights or a small one"
_MEDVIT = "Manzari et al., arXiv 2302.09462; parameter names of github.com/Omid-Nejati/MedViT"
_MEDVIT_READING = (
    "stem, widths, doubled residuals and keys pooled along the reading order as in the published code (pooling=grid "
    "pools squares); the channel weights' hidden units start with a bias of 1, since two or three ReLU units often "
    "start dead; pmc=True exchanges feature mean and deviation per channel behind stage 1 and leaves the labels alone, "
    "which is our reading of a part that the published code lacks"
)
_MEDVIT_CRITICISM = (
    "published sizes (10.8, 23.6, 45.8 M) do not fit the published code, which counts 32.2, 45.4, 58.7 M at 1000 "
    "classes and exports another network than it trains; its numbers on MedMNIST are of single runs, and its accuracy "
    "of 0.959 on ChestMNIST says little beside the 0.947 of predicting nothing"
)

CARDS: dict[str, dict[str, str | int]] = {
    "resnet18": {
        "summary": "ResNet-18, residual CNN",
        "parameters": 11_177_538,
        "macs": 1_813_562_368,
        "source": f"He et al., arXiv 1512.03385; {_TIMM}",
        "reading": "timm's; small_input=True gives the 3x3 stem of MedMNIST's 28 px rows",
        "criticism": "MedMNIST's 224 px rows are 28 px images enlarged, not comparable with true 224 px",
    },
    "resnet50": {
        "summary": "ResNet-50, residual CNN, the trunk of the paper's best model",
        "parameters": 23_512_130,
        "macs": 4_087_140_352,
        "source": f"He et al., arXiv 1512.03385; {_TIMM}",
        "reading": "v1.5: stride on the 3x3 convolution; small_input=True gives the 3x3 stem of MedMNIST's 28 px rows; "
        "head_hidden=256 gives the slides' head: 24,036,174 at 14 classes, and Keras counts 53,120 running statistics "
        "and 26,560 convolution biases more, 24,115,854 = 24.12 M; its biases before a batch norm change nothing",
        "criticism": "v1 and v1.5 are often confused; small test sets vary by points from seed to seed",
    },
    "densenet121": {
        "summary": "DenseNet-121, densely connected CNN, the usual baseline of chest X-ray work",
        "parameters": 6_955_906,
        "macs": 2_833_139_712,
        "source": f"Huang et al., arXiv 1608.06993; {_TIMM}",
        "reading": "timm's; head_hidden=256 gives the slides' head: 7,219,854 at 14 classes, and Keras counts 83,648 "
        "running statistics more, 7,303,502 = 7.30 M",
        "criticism": "few weights but much memory and time: concatenations are copied; checkpointing=True trades time "
        "for memory",
    },
    "efficientnet_b0": {
        "summary": "EfficientNet-B0, small CNN with depthwise convolutions, fast on CPU",
        "parameters": 4_010_110,
        "macs": 384_537_312,
        "source": f"Tan and Le, arXiv 1905.11946; {_TIMM}",
        "reading": "timm's; head_hidden=256 gives the slides' head: 4,339,082 at 14 classes, and Keras counts 42,016 "
        "running statistics and 7 numbers of its scaling layer more, 4,381,105 = 4.38 M",
        "criticism": "trains slowly for its size; batch-norm statistics suffer from small batches",
    },
    "convnext_base": {
        "summary": "ConvNeXt-B, large modern CNN: a teacher, not a model for the ward",
        "parameters": 87_568_514,
        "macs": 15_353_707_520,
        "source": f"Liu et al., arXiv 2201.03545; {_TIMM}",
        "reading": "timm's",
        "criticism": "about 10 times slower than EfficientNet-B0 on a CPU",
    },
    "coatnet_0": {
        "summary": "CoAtNet-0, convolution stages then attention stages",
        "parameters": 24_269_358,
        "macs": 4_545_741_312,
        "source": f"Dai et al., arXiv 2106.04803; {_TIMM} coatnet_0_224",
        "reading": "the paper's form; timm has weights for timm/coatnet_0_rw_224 only",
        "criticism": "built for one image size (relative position tables)",
    },
    "maxvit_tiny": {
        "summary": "MaxViT-T, convolution with window and grid attention",
        "parameters": 30_404_554,
        "macs": 5_551_325_680,
        "source": f"Tu et al., arXiv 2204.01697; {_TIMM} maxvit_tiny_tf_224",
        "reading": "the form of the paper's own code; windows are 1/32 of the image",
        "criticism": "built for one image size, a multiple of 32; slow on a CPU for its accuracy",
    },
    "conv2d": {
        "summary": "Conv2D, three-stack CNN of the HATR paper",
        "parameters": 371_778,
        "macs": 484_098_560,
        "source": _HATR,
        "reading": "channels 64-128-256; the 14x14 map needs four halvings, the first is a strided convolution; "
        "reading=pool and reading=double are the alternatives",
        "criticism": "one layer per stack is a guess; published 82.7 percent, one run, 624 test images",
    },
    "vit": {
        "summary": "vision transformer of free size (patch_size, embed_dim, depth, num_heads)",
        "parameters": 5_524_802,
        "macs": 1_253_491_584,
        "source": _VIT,
        "reading": "defaults are ViT-Ti/16",
        "criticism": _VIT_CRITICISM,
    },
    "vit_tiny": {
        "summary": "ViT-Ti/16, vision transformer, 192 wide",
        "parameters": 5_524_802,
        "macs": 1_253_491_584,
        "source": _VIT,
        "reading": "truncated normal 0.02; patch_size=8 for small images",
        "criticism": _VIT_CRITICISM,
    },
    "vit_small": {
        "summary": "ViT-S/16, vision transformer, 384 wide; our reading of the HATR paper's 'ViT'",
        "parameters": 21_666_434,
        "macs": 4_598_499_072,
        "source": _VIT,
        "reading": "the paper does not say which ViT; S/16 at 224",
        "criticism": _VIT_CRITICISM,
    },
    "vit_base": {
        "summary": "ViT-B/16, vision transformer, 768 wide",
        "parameters": 85_800_194,
        "macs": 17_563_061_760,
        "source": _VIT,
        "reading": "truncated normal 0.02",
        "criticism": _VIT_CRITICISM,
    },
    "deit_small": {
        "summary": "DeiT-S/16, ViT-S with DeiT's weights; distilled=True adds the second token and head",
        "parameters": 21_666_434,
        "macs": 4_598_499_072,
        "source": "Touvron et al., arXiv 2012.12877; names and layout of timm's deit",
        "reading": "the same network as vit_small without distillation; distilled answers are the mean of both heads",
        "criticism": _VIT_CRITICISM,
    },
    "hatr": {
        "summary": "HATR on any trunk: trunk=NAME, trunk_stride=16 for small images",
        "parameters": 27_552_070,
        "macs": 2_473_006_394,
        "source": _HATR,
        "reading": _HATR_READING,
        "criticism": _HATR_CRITICISM,
    },
    "hatr_conv2d": {
        "summary": "HATR-Conv2D: token refinement and a shallow ViT on the three-stack CNN",
        "parameters": 14_861_638,
        "macs": 3_381_219_962,
        "source": _HATR,
        "reading": f"256 to 512 channels inside the embedding; {_HATR_READING}",
        "criticism": _HATR_CRITICISM,
    },
    "hatr_resnet50": {
        "summary": "HATR-ResNet-50: token refinement and a shallow ViT on ResNet-50, the paper's best model",
        "parameters": 40_670_022,
        "macs": 4_785_116_474,
        "source": _HATR,
        "reading": f"2048 channels reduced to 512 by 1x1 convolution, batch norm, ReLU; {_HATR_READING}",
        "criticism": _HATR_CRITICISM,
    },
    "medvit_tiny": {
        "summary": "MedViT cut down to (3, 4, 5, 3) blocks by us: no such size was released",
        "parameters": 24_503_724,
        "macs": 4_606_846_144,
        "source": _MEDVIT,
        "reading": f"25,526,674 parameters at 1000 classes, not the paper's T of 10.8 M; {_MEDVIT_READING}",
        "criticism": _MEDVIT_CRITICISM,
    },
    "medvit_small": {
        "summary": "MedViT-S, convolutional blocks with reduced self-attention at the end of each stage",
        "parameters": 31_138_490,
        "macs": 5_856_511_168,
        "source": _MEDVIT,
        "reading": f"32,161,440 parameters at 1000 classes; {_MEDVIT_READING}",
        "criticism": _MEDVIT_CRITICISM,
    },
    "medvit_base": {
        "summary": "MedViT-B: 20 blocks in the third stage",
        "parameters": 44_408_022,
        "macs": 8_355_841_216,
        "source": _MEDVIT,
        "reading": f"45,430,972 parameters at 1000 classes; {_MEDVIT_READING}",
        "criticism": _MEDVIT_CRITICISM,
    },
    "medvit_large": {
        "summary": "MedViT-L: 30 blocks in the third stage; 57,689,854 parameters at 14 classes",
        "parameters": 57_677_554,
        "macs": 10_855_171_264,
        "source": _MEDVIT,
        "reading": f"58,700,504 parameters at 1000 classes; {_MEDVIT_READING}",
        "criticism": _MEDVIT_CRITICISM,
    },
    **HYBRIDS,
    **SLIDES,
    "token_pruned": {
        "summary": "CNN-ViT hybrid that keeps the best half of its tokens (keep_rate), with a light convolutional stem",
        "parameters": 22_430_837,
        "macs": 2_612_170_368,
        "source": "MedLoom's own design; EViT arXiv 2202.07800, SPViT arXiv 2112.13890, stem arXiv 2106.14881",
        "reading": "one stem scores and embeds; ViT-S blocks; top-k in multiples of 8, one package token for the rest; "
        "keep_rate=1 is the dense twin",
        "criticism": _PRUNED_CRITICISM,
    },
    "token_pruned_resnet18": {
        "summary": "the same on ResNet-18 up to stride 16, with six blocks",
        "parameters": 13_644_037,
        "macs": 2_513_925_760,
        "source": "MedLoom's own design; the trunk of the plan 'CNN-ViT dynamic token pruning' (2025)",
        "reading": "the ViT is shortened, or the trunk eats what pruning saves",
        "criticism": _PRUNED_CRITICISM,
    },
    "dynamic_vit": {
        "summary": "DynamicViT on ViT-S/16: three predictors let 0.7, 0.49 and 0.34 of the patches go on (keep_rate)",
        "parameters": 22_390_184,
        "macs": 2_957_488_128,
        "source": "Rao et al., arXiv 2106.02034; the ViT under vit's and timm's names",
        "reading": "kept counts in multiples of 8, the goals of the ratio loss too; while training keeps all, "
        "the ViT learns undisturbed and the predictors learn beside it to keep everything; learns from labels and, "
        "with distill.teacher, from a teacher's answers, not from its tokens; keep_rate=1 is the ViT without "
        "predictors",
        "criticism": "its author finds it slower than the ViT for single images on a GPU, as the predictors are more "
        "small networks in a row; training is not faster, it masks what answering drops; the published accuracy is "
        "that of 30 epochs from ImageNet's weights with a teacher",
    },
    **SEGMENTERS,
}


def timm_card(name: str) -> dict[str, str | int]:
    """The card of a timm network that is not registered by a name of ours."""
    return {
        "summary": f"timm's network {name.partition('/')[2]}",
        "source": _TIMM,
        "reading": "timm's, its own head",
        "criticism": "not covered by the parameter table and golden answers of this project",
    }
