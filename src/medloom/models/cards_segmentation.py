"""The cards of the segmenters, of images and of volumes; as in ``models.cards``."""

from __future__ import annotations

_UNET = (
    "Ronneberger et al., arXiv 1505.04597; nnU-Net's plain form, Isensee et al., arXiv 1904.08128; MONAI's DynUNet "
    "weight for weight"
)
_UNET_CRITICISM = (
    "nothing but a baseline, and a strong one: with equal care plain U-Nets equal or beat published hybrids "
    "(arXiv 2404.09556); its receptive field ends where its levels end"
)
_TRANSUNET = "Chen et al., arXiv 2102.04306; github.com/Beckschen/TransUNet"
_TRANSUNET_READING = (
    "the published code's form without its limits: any height and width, positions that follow the grid, channels as "
    "they are instead of grey repeated, dropout behind the attention's projection too"
)
_TRANSUNET_CRITICISM = (
    "published Dice of 77.48 is one run on 12 cases; later papers get 75 to 82 from it, a plain U-Net over 80 under "
    "its trainer; its metric gives Dice 1 for an organ that is answered but not there, a distance of 0 for one missed"
)
_TRANSUNET_3D = "Chen et al., arXiv 2310.07781, encoder form; github.com/Beckschen/3D-TransUNet"
_TRANSUNET_3D_READING = (
    "five levels of two convolutions, patches of one cell, no LayerScale, no mask queries; positions follow the grid; "
    "deep_supervision=True adds heads at strides 2 and 4"
)
_TRANSUNET_3D_CRITICISM = (
    "its numbers cannot be reproduced from the published preprocessing (issue 17 there); at 96 cubed the transformer "
    "sees 216 tokens and is less than a tenth of the cost, so ask whether the U-Net alone does as well"
)
_MAXVIT_UNET = "Khan et al., arXiv 2305.08396; trunk: Tu et al., arXiv 2204.01697"
_MAXVIT_UNET_READING = (
    "heads of 32 channels (the published code has 32 heads, of 2 channels at stage 1), MBConv with its widening "
    "convolution, decoded to the full grid instead of stride 4; deep_supervision=True adds heads at strides 4, 8, 16"
)
_MAXVIT_UNET_CRITICISM = (
    "the published model is chosen on the test images, which are shrunk to 256 px before they are scored; one run; "
    "window attention is slow on a CPU for its multiply-adds"
)
_MAXVIT_UNET_3D_READING = (
    "ours: every part of the two-dimensional one with a third axis, one block per decoder stage, group norm for "
    "batches of one; windows and strides may differ per axis; deep_supervision=True adds heads at strides 4, 8, 16"
)
_MAXVIT_UNET_3D_CRITICISM = "no published form and no published number; compare it with unet_3d under one protocol"

SEGMENTERS: dict[str, dict[str, str | int]] = {
    "unet": {
        "task": "segmentation",
        "summary": "U-Net, the baseline, as large as maxvit_unet_mini",
        "parameters": 7_762_594,
        "macs": 12_073_304_064,
        "image_size": 256,
        "source": _UNET,
        "reading": "five levels of 32 to 512 channels: 0.4 percent more parameters than maxvit_unet_mini, and four "
        "times its multiply-adds; deep_supervision=True adds heads at strides 2 and 4",
        "criticism": _UNET_CRITICISM,
    },
    "unet_3d": {
        "task": "segmentation",
        "spatial_dims": 3,
        "summary": "U-Net for volumes, the baseline, as large as maxvit_unet_3d_tiny",
        "parameters": 7_350_138,
        "macs": 109_426_277_376,
        "source": _UNET,
        "reading": "five levels of 24, 48, 96, 152 and 240 channels: 0.1 percent more parameters than "
        "maxvit_unet_3d_tiny, and five times its multiply-adds; deep_supervision=True adds heads at strides 2 and 4",
        "criticism": _UNET_CRITICISM,
    },
    "transunet": {
        "task": "segmentation",
        "summary": "TransUNet R50-ViT-B/16, the published size",
        "parameters": 105_276_066,
        "macs": 29_175_152_640,
        "source": _TRANSUNET,
        "reading": f"105,277,081 parameters at 9 classes; {_TRANSUNET_READING}",
        "criticism": _TRANSUNET_CRITICISM,
    },
    "transunet_small": {
        "task": "segmentation",
        "summary": "TransUNet with ViT-S on a trunk of 2, 3 and 4 bottlenecks",
        "parameters": 33_339_682,
        "macs": 14_390_996_992,
        "source": _TRANSUNET,
        "reading": f"our size; {_TRANSUNET_READING}",
        "criticism": _TRANSUNET_CRITICISM,
    },
    "transunet_tiny": {
        "task": "segmentation",
        "summary": "TransUNet with four blocks of 256 channels on a ResNet-18-like trunk, for a CPU",
        "parameters": 7_440_162,
        "macs": 4_073_979_904,
        "source": _TRANSUNET,
        "reading": f"our size; {_TRANSUNET_READING}",
        "criticism": _TRANSUNET_CRITICISM,
    },
    "transunet_3d": {
        "task": "segmentation",
        "spatial_dims": 3,
        "summary": "TransUNet for volumes: a U-Net with ViT-B on its coarsest cells",
        "parameters": 108_651_106,
        "macs": 220_061_270_016,
        "source": _TRANSUNET_3D,
        "reading": _TRANSUNET_3D_READING,
        "criticism": _TRANSUNET_3D_CRITICISM,
    },
    "transunet_3d_small": {
        "task": "segmentation",
        "spatial_dims": 3,
        "summary": "the same with six blocks of 384 channels",
        "parameters": 30_718_690,
        "macs": 202_620_469_248,
        "source": _TRANSUNET_3D,
        "reading": f"our size; {_TRANSUNET_3D_READING}",
        "criticism": _TRANSUNET_3D_CRITICISM,
    },
    "transunet_3d_tiny": {
        "task": "segmentation",
        "spatial_dims": 3,
        "summary": "the same with half the channels and four blocks of 192: patches of 32 to 64 cubed on a CPU",
        "parameters": 6_820_850,
        "macs": 50_687_188_992,
        "source": _TRANSUNET_3D,
        "reading": f"our size; {_TRANSUNET_3D_READING}",
        "criticism": _TRANSUNET_3D_CRITICISM,
    },
    "maxvit_unet": {
        "task": "segmentation",
        "summary": "MaxViT-UNet on MaxViT-T",
        "parameters": 37_388_610,
        "macs": 10_026_893_312,
        "source": _MAXVIT_UNET,
        "reading": f"MaxViT-T as the trunk, whose ImageNet weights load; {_MAXVIT_UNET_READING}",
        "criticism": _MAXVIT_UNET_CRITICISM,
    },
    "maxvit_unet_mini": {
        "task": "segmentation",
        "summary": "MaxViT-UNet of 32 to 256 channels, for a CPU",
        "parameters": 7_730_986,
        "macs": 3_035_144_192,
        "image_size": 256,
        "source": _MAXVIT_UNET,
        "reading": f"our size; {_MAXVIT_UNET_READING}",
        "criticism": _MAXVIT_UNET_CRITICISM,
    },
    "maxvit_unet_3d_tiny": {
        "task": "segmentation",
        "spatial_dims": 3,
        "summary": "MaxViT-UNet for volumes, of 32 to 256 channels",
        "parameters": 7_344_184,
        "macs": 20_915_550_208,
        "source": _MAXVIT_UNET,
        "reading": _MAXVIT_UNET_3D_READING,
        "criticism": _MAXVIT_UNET_3D_CRITICISM,
    },
    "maxvit_unet_3d_small": {
        "task": "segmentation",
        "spatial_dims": 3,
        "summary": "MaxViT-UNet for volumes, of 64 to 512 channels",
        "parameters": 28_574_974,
        "macs": 31_570_714_624,
        "source": _MAXVIT_UNET,
        "reading": f"28,575,178 parameters at 14 classes; {_MAXVIT_UNET_3D_READING}",
        "criticism": _MAXVIT_UNET_3D_CRITICISM,
    },
    "swin_unetr": {
        "task": "segmentation",
        "spatial_dims": 3,
        "summary": "SwinUNETR, MONAI's own network: a peer to compare with",
        "parameters": 15_703_004,
        "macs": 82_691_336_352,
        "source": "Hatamizadeh et al., arXiv 2201.01266; github.com/Project-MONAI/MONAI; needs medloom[volumes]",
        "reading": "MONAI's, with 24 channels; feature_size=48 is the published size of 62 million",
        "criticism": "not ours; on 206 CTs SegResNet beats it (arXiv 2603.18616), and plain U-Nets do elsewhere "
        "(arXiv 2404.09556)",
    },
}
