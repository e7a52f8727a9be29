"""The twelve 2D sets of MedMNIST v2: names, tasks, label names in order, counts, licences, and where the files lie.

Addresses and MD5 sums are those that the medmnist package 3.0.2 publishes for its Zenodo record; the Organ sets were
corrected for it, so that older copies of them have other sums and counts.

Reference: Yang et al., MedMNIST v2, Scientific Data 10:41, 2023, doi:10.1038/s41597-022-01721-8.
"""

from __future__ import annotations

from dataclasses import dataclass

BASE = "https://zenodo.org/records/10519652/files"
"""Folder of the files; ``medloom data fetch --url`` or MEDLOOM_MEDMNIST_URL names a mirror of it."""
SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class MedMnistSet:
    """One set at its four sizes.

    Attributes:
        name: as its files are called.
        about: what the images show.
        task: ``binary``, ``multi-class``, ``multi-label`` or ``ordinal``.
        labels: names in the order of the label numbers (of the label columns, where labels are many).
        channels: 1 or 3.
        counts: images in train, val and test.
        licence: of the images, as the authors state it.
        md5: size to MD5 sum of the file.
    """

    name: str
    about: str
    task: str
    labels: tuple[str, ...]
    channels: int
    counts: tuple[int, int, int]
    licence: str
    md5: dict[int, str]

    def file(self, size: int) -> str:
        """``chestmnist.npz`` at 28 pixels, ``chestmnist_64.npz`` at others."""
        return f"{self.name}.npz" if size == 28 else f"{self.name}_{size}.npz"


def _set(
    name: str, about: str, task: str, labels: str, channels: int, counts: tuple[int, int, int], licence: str, md5: str
) -> MedMnistSet:
    sums = dict(zip(SIZES, md5.split(), strict=True))
    return MedMnistSet(name, about, task, tuple(labels.split("|")), channels, counts, licence, sums)


# fmt: off
_ALL = (
    _set(
        "pathmnist", "colorectal histology", "multi-class",
        "adipose|background|debris|lymphocytes|mucus|smooth muscle|normal colon mucosa|"
        "cancer-associated stroma|colorectal adenocarcinoma epithelium",
        3, (89996, 10004, 7180), "CC BY 4.0",
        "a8b06965200029087d5bd730944a56c1 55aa9c1e0525abe5a6b9d8343a507616 "
        "ac42d08fb904d92c244187169d1fd1d9 2c51a510bcdc9cf8ddb2af93af1eadec",
    ),
    _set(
        "chestmnist", "chest X-ray, NIH ChestX-ray14", "multi-label",
        "atelectasis|cardiomegaly|effusion|infiltration|mass|nodule|pneumonia|pneumothorax|"
        "consolidation|edema|emphysema|fibrosis|pleural|hernia",
        1, (78468, 11219, 22433), "CC BY 4.0",
        "02c8a6516a18b556561a56cbdd36c4a8 9de6cd0b934ebb5b7426cfba5efbae16 "
        "db107e5590b27930b62dbaf558aebee3 45bd33e6f06c3e8cdb481c74a89152aa",
    ),
    _set(
        "dermamnist", "dermatoscopy, HAM10000", "multi-class",
        "actinic keratoses and intraepithelial carcinoma|basal cell carcinoma|"
        "benign keratosis-like lesions|dermatofibroma|melanoma|melanocytic nevi|vascular lesions",
        3, (7007, 1003, 2005), "CC BY-NC 4.0",
        "0744692d530f8e62ec473284d019b0c7 b70a2f5635c6199aeaa28c31d7202e1f "
        "2defd784463fa5243564e855ed717de1 8974907d8e169bef5f5b96bc506ae45d",
    ),
    _set(
        "octmnist", "retinal OCT", "multi-class",
        "choroidal neovascularization|diabetic macular edema|drusen|normal",
        1, (97477, 10832, 1000), "CC BY 4.0",
        "c68d92d5b585d8d81f7112f81e2d0842 e229e9440236b774d9f0dfef9d07bdaf "
        "0a97e76651ace45c5d943ee3f65b63ae abc493b6d529d5de7569faaef2773ba3",
    ),
    _set(
        "pneumoniamnist", "paediatric chest X-ray", "binary",
        "normal|pneumonia",
        1, (4708, 524, 624), "CC BY 4.0",
        "28209eda62fecd6e6a2d98b1501bb15f 8f4eceb4ccffa70c672198ea285246c6 "
        "05b46931834c231683c68f40c47b2971 d6a3c71de1b945ea11211b03746c1fe1",
    ),
    _set(
        "retinamnist", "fundus photograph, DeepDRiD", "ordinal",
        "0|1|2|3|4",
        3, (1080, 120, 400), "CC BY 4.0",
        "bd4c0672f1bba3e3a89f0e4e876791e4 afda852cc34dcda56f86ad2b2457dbcc "
        "e48e916a24454daf90583d4e6efb1a18 eae7e3b6f3fcbda4ae613ebdcbe35348",
    ),
    _set(
        "breastmnist", "breast ultrasound", "binary",
        "malignant|normal, benign",
        1, (546, 78, 156), "CC BY 4.0",
        "750601b1f35ba3300ea97c75c52ff8f6 742edef2a1fd1524b2efff4bd7ba9364 "
        "363e4b3f8d712e9b5de15470a2aaadf1 b56378a6eefa9fed602bb16d192d4c8b",
    ),
    _set(
        "bloodmnist", "blood cell microscopy", "multi-class",
        "basophil|eosinophil|erythroblast|"
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)|lymphocyte|monocyte|"
        "neutrophil|platelet",
        3, (11959, 1712, 3421), "CC BY 4.0",
        "7053d0359d879ad8a5505303e11de1dc 2b94928a2ae4916078ca51e05b6b800b "
        "adace1e0ed228fccda1f39692059dd4c b718ff6835fcbdb22ba9eacccd7b2601",
    ),
    _set(
        "tissuemnist", "kidney cortex microscopy, BBBC051", "multi-class",
        "Collecting Duct, Connecting Tubule|Distal Convoluted Tubule|"
        "Glomerular endothelial cells|Interstitial endothelial cells|Leukocytes|Podocytes|"
        "Proximal Tubule Segments|Thick Ascending Limb",
        1, (165466, 23640, 47280), "CC BY 4.0",
        "ebe78ee8b05294063de985d821c1c34b 123ece2eba09d0aa5d698fda57103344 "
        "61b955355d7425a89687b06cca3ce0c2 b077128c4a949f0a4eb01517f9037b9c",
    ),
    _set(
        "organamnist", "abdominal CT, axial, LiTS", "multi-class",
        "bladder|femur-left|femur-right|heart|kidney-left|kidney-right|liver|lung-left|"
        "lung-right|pancreas|spleen",
        1, (34561, 6491, 17778), "CC BY 4.0",
        "68e3f8846a6bd62f0c9bf841c0d9eacc 2dcccc29b88e6da5a01161ef20cda288 "
        "eeae80d0a227a8d099027e1b3cfd3b60 50747347e05c87dd3aaf92c49f9f3170",
    ),
    _set(
        "organcmnist", "abdominal CT, coronal, LiTS", "multi-class",
        "bladder|femur-left|femur-right|heart|kidney-left|kidney-right|liver|lung-left|"
        "lung-right|pancreas|spleen",
        1, (12975, 2392, 8216), "CC BY 4.0",
        "b9ceb9546e10131b32923c5bbeaea2b1 3ce34a8724ea6f548e6db4744d03b6a9 "
        "773c1f009daa3fe5d9a2a201b2a7ed94 050f5e875dc056f6768abf94ec9995d1",
    ),
    _set(
        "organsmnist", "abdominal CT, sagittal, LiTS", "multi-class",
        "bladder|femur-left|femur-right|heart|kidney-left|kidney-right|liver|lung-left|"
        "lung-right|pancreas|spleen",
        1, (13932, 2452, 8827), "CC BY 4.0",
        "9ab87b696fb54e2a387ebe992d6ed5f1 53a6d115339d874c25e309a994ff46d3 "
        "ded0c5fa01a95dc4978b956f613e9b8e b354719e553fbbb2513d5533f52a4cb1",
    ),
)
# fmt: on
SETS = {found.name: found for found in _ALL}


def set_of_file(stem: str) -> MedMnistSet | None:
    """The set that a file ``chestmnist_64.npz`` names, whatever folder it lies in; None for other names."""
    name, _, size = stem.lower().partition("_")
    return SETS.get(name) if not size or size in map(str, SIZES) else None
