"""Cards of the networks that stack convolution and attention: ConvNeXt with DeiT, larger CoAtNets; see ``cards``."""

from __future__ import annotations

_TIMM = "github.com/huggingface/pytorch-image-models"
_COATNET = "Dai et al., arXiv 2106.04803"
_COATNET_CRITICISM = "built for one image size, a multiple of 32 (relative position tables); no published weights"
_PAIR = (
    "Liu et al., arXiv 2201.03545, and Touvron et al., arXiv 2012.12877; the pairing: DOI 10.5281/zenodo.14828792, "
    "which gives no code and no numbers"
)
_READING = (
    "the source says 'CNN stem combined with a transformer head' and no more: here the map behind stage 3 (tap=3, "
    "stride 16; tap=4 is stride 32), one linear step to the token width, then all of DeiT but its patch embedding; "
    "both halves take their published weights; depth=6 or 4 takes evenly spaced blocks; trunk=NAME takes any trunk"
)
_CRITICISM = (
    "nobody has published a number for it: the source's '3 to 8 percent Dice' and '5 to 20 percent of the labels' have "
    "no data behind them; compare it with both halves alone on the same budget"
)

HYBRIDS: dict[str, dict[str, str | int]] = {
    "coatnet_1": {
        "summary": "CoAtNet-1, convolution stages then attention stages, deeper than CoAtNet-0",
        "parameters": 41_458_314,
        "macs": 8_642_732_544,
        "source": f"{_COATNET}; {_TIMM} coatnet_1_224",
        "reading": "the paper's form; timm has weights for timm/coatnet_1_rw_224 only",
        "criticism": _COATNET_CRITICISM,
    },
    "coatnet_2": {
        "summary": "CoAtNet-2, as CoAtNet-1 and a third wider",
        "parameters": 73_661_794,
        "macs": 16_426_113_024,
        "source": f"{_COATNET}; {_TIMM} coatnet_2_224",
        "reading": "the paper's form; timm has weights for timm/coatnet_2_rw_224 only",
        "criticism": _COATNET_CRITICISM,
    },
    "convnext_deit": {
        "summary": "ConvNeXt-B up to stage 3 with DeiT-S on its 14x14 cells: a teacher, not a model for the ward",
        "parameters": 81_689_346,
        "macs": 18_589_675_264,
        "source": _PAIR,
        "reading": _READING,
        "criticism": f"{_CRITICISM}; ConvNeXt-B alone takes 110 ms on a laptop CPU, ten times EfficientNet-B0",
    },
    "convnext_deit_tiny": {
        "summary": "ConvNeXt-T up to stage 3 with DeiT-Ti",
        "parameters": 17_799_074,
        "macs": 4_936_836_480,
        "source": _PAIR,
        "reading": f"the same class at the next smaller sizes; {_READING}",
        "criticism": _CRITICISM,
    },
    "convnext_deit_atto": {
        "summary": "ConvNeXt-Atto up to stage 3 with four blocks of DeiT-Ti: the same for a CPU",
        "parameters": 3_342_074,
        "macs": 869_377_152,
        "source": f"{_PAIR}; Atto: {_TIMM} convnext_atto",
        "reading": "the first form of Atto, blocks 0, 4, 7 and 11 of DeiT-Ti's weights; trunk=convnextv2_atto in "
        f"convnext_deit has the second; {_READING}",
        "criticism": _CRITICISM,
    },
}
