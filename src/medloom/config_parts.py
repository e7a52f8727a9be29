"""The parts of a recipe and the values that each key may have; ``config`` reads them from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from medloom.errors import check_accept


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Millimetres = Annotated[float, Field(gt=0, le=50)]


class DataConfig(Part):
    """Which images, whose, and with what labels."""

    path: str | None = None
    source: Literal["auto", "folder", "table", "medmnist", "h5", "masks", "nifti", "dicom"] = Field(
        default="auto", description="masks: pictures, nifti: volumes, with masks beside them; dicom: DICOM alone"
    )
    patient: str = Field(
        default="auto",
        description="auto | kermany (number with kind) | kermany-number | dicom | column:NAME | pattern:REGEX | none",
    )
    patient_key: str | None = Field(
        default=None, description="file with the site's secret, which hashes the patient ids of DICOM files"
    )
    site: str | None = Field(default=None, description="column:NAME | pattern:REGEX with one group")
    image_column: str | None = None
    label_column: str | None = None
    mask_column: str | None = Field(default=None, description="a picture per image that is not 0 where the finding is")
    split_column: str | None = Field(default=None, description="NAME, or none to draw the splits here")
    classes: tuple[str, ...] | None = Field(
        default=None, description="names in order; the last is the positive one of two"
    )
    label_values: tuple[Annotated[int, Field(ge=0, le=65535)], ...] | None = Field(
        default=None, description="numbers that masks hold, one per name in classes; the first is the background's"
    )
    rename: dict[str, str] = Field(
        default={}, description="label in the source: its name here, '' to leave it out; '*' stands for the rest"
    )
    multi_label: bool | None = None
    uncertain: Literal["refuse", "negative", "positive", "drop"] = "refuse"
    encoding: str = "utf-8"
    exclude: tuple[str, ...] = ()
    exclude_limit: Fraction = 0.01
    frames: Literal["refuse", "first", "all"] = "refuse"
    max_megapixels: Annotated[float, Field(gt=0)] = 64.0
    pixel_spacing: Millimetres | tuple[Millimetres, Millimetres] | None = Field(
        default=None, description="mm between the rows and between the columns of pictures whose files do not say"
    )
    expect: dict[Literal["modality", "body_part", "view"], tuple[str, ...]] = Field(
        default={}, description="what DICOM files must be of, where they say, e.g. {modality: [CR, DX]}"
    )
    burned_in: Literal["exclude", "keep"] = Field(
        default="exclude", description="DICOM images that may have text in their pixels; keep once you have looked"
    )
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.0
    split_seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of a test split that is drawn here")
    folds: Annotated[int, Field(ge=2, le=50)] | None = Field(default=None, description="cross-validation: cut into")
    fold: Annotated[int, Field(ge=0)] = Field(default=0, description="which fold is tested on")
    train_sites: tuple[str, ...] = Field(default=(), description="train on these sites alone")
    test_sites: tuple[str, ...] = Field(default=(), description="test on these sites, train on the others")
    min_val_per_class: Annotated[int, Field(ge=1)] = 50
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    accept: tuple[str, ...] = Field(default=(), description="codes of gates to pass; each stands in the report")
    _gates = field_validator("accept")(check_accept)

    def decoding(self) -> dict[str, Any]:
        """How files are decoded, as the bundle keeps it."""
        expect = {name: list(words) for name, words in self.expect.items()}
        return {"frames": self.frames, "max_megapixels": self.max_megapixels, "expect": expect}


class PreprocessConfig(Part):
    """Array to model input; becomes the frozen ``Preprocess`` of the bundle."""

    size: Positive | tuple[Positive, Positive] = 224
    resize: Literal["squash", "pad", "crop", "none"] = "squash"
    channels: Literal["grey", "replicate", "pseudocolor", "rgb"] = "replicate"
    intensity: Literal["none", "percentile", "equalize"] = "none"
    percentiles: tuple[float, float] = (0.5, 99.5)
    statistics: Literal["paper", "imagenet", "train", "half", "unit"] = "paper"


class ModelConfig(Part):
    """Which network; ``options`` go to its builder unchanged."""

    name: str = "hatr_resnet50"
    options: dict[str, Any] = {}
    pretrained: bool = False
    weights: str | None = Field(default=None, description="safetensors file to start from")
    new_head: bool = Field(default=False, description="with weights: leave out a head of another class count")


class AugmentConfig(Part):
    """Ranges of the random changes to training images; 0 or (1, 1) switches one off. One draw per image."""

    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    vertical_flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 10.0
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    crop: tuple[float, float] = Field(
        default=(1.0, 1.0), description="area share of a random resized crop, e.g. (0.55, 1)"
    )
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.1
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    blur: Annotated[float, Field(ge=0)] = Field(default=0.0, description="largest Gaussian sigma in pixels")
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    elastic: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="largest displacement in voxels of a smooth deformation; volumes only"
    )
    quarter_turns: bool = Field(default=False, description="turns by 0, 90, 180 or 270 degrees, of square input")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.0, description="share of the colour circle; rgb only")
    saturation: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="rgb only")
    stain: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="scale and shift of haematoxylin and eosin, e.g. 0.05 (light) or 0.2; rgb only"
    )


class ImbalanceConfig(Part):
    """One switch for class imbalance."""

    method: Literal["none", "class_weights", "oversample", "undersample", "focal"] = "class_weights"
    weights: Literal["inverse_frequency"] | dict[str, float] = Field(
        default="inverse_frequency", description="for class_weights: a rule, or a weight per class name"
    )
    gamma: Annotated[float, Field(ge=0)] = 2.0


class LossConfig(Part):
    """What training minimises."""

    name: Literal["auto", "cross_entropy", "bce", "weighted_bce", "focal", "asymmetric"] = Field(
        default="auto",
        description="auto: cross-entropy, or one binary cross-entropy per label where labels are many, with the "
        "weights (or the focal factor) of imbalance.method",
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="focal: weight of positives, 1 - alpha of negatives; 0.25 where labels are many"
    )
    gamma: Annotated[float, Field(ge=0)] = Field(default=2.0, description="focal: exponent")
    gamma_positive: Annotated[float, Field(ge=0)] = Field(default=0.0, description="asymmetric: exponent of positives")
    gamma_negative: Annotated[float, Field(ge=0)] = Field(default=4.0, description="asymmetric: exponent of negatives")
    margin: Fraction = Field(default=0.05, description="asymmetric: what is taken off the probability of negatives")
    reconstruction: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="weight of the reconstruction error, in models that rebuild their input"
    )


class TokensConfig(Part):
    """How a model that chooses its tokens is trained; ``model.options.keep_rate`` is what it will run at."""

    scorer_epochs: Annotated[int, Field(ge=0)] = Field(
        default=0, description="first epochs in which only stem and scorer learn, by the multiple-instance head"
    )
    freeze_scorer: Fraction = Field(
        default=0.3, description="share of the epochs behind scorer_epochs in which the scorer stands still"
    )
    scorer_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.5, description="weight of the multiple-instance loss beside the classification"
    )
    mask_weight: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="weight of the masks as the goal of the scores, for images that have one"
    )
    ratio_weight: Annotated[float, Field(ge=0)] = Field(
        default=2.0, description="weight of the kept shares' distance from their goals, in models that predict tokens"
    )
    attention_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="weight of the teacher's CLS attention as the goal of the scores; needs distill.teacher",
    )
    warmup: Fraction = Field(default=0.1, description="share of the steps that keep all tokens")
    ramp: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.6, description="share of the steps after which the keep rate has fallen to its goal, along a cosine"
    )
    multi_keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(), description="draw the keep rate of each step from these: one checkpoint for all of them"
    )


class DistillConfig(Part):
    """A teacher whose answers are learnt beside the labels."""

    teacher: str | None = Field(default=None, description="run directory or bundle, of the same classes and input")
    weight: Annotated[float, Field(ge=0)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0


class TrainConfig(Part):
    """The loop."""

    epochs: Positive = 20
    max_steps: Positive | None = None
    batch_size: Positive = 32
    accumulate: Positive = 1
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Fraction = 0.9
    schedule: Literal["constant", "cosine", "poly", "step"] = "constant"
    step_epochs: tuple[Positive, ...] = ()
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze_epochs: Annotated[int, Field(ge=0)] = Field(
        default=0, description="epochs at the start in which the trunk stands still"
    )
    label_smoothing: Fraction = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    ema_decay: Fraction = 0.0
    amp: Literal["auto", "bf16", "off"] = Field(
        default="auto", description="number format of the network in training; auto: bf16 where the machine has it"
    )
    patience: Positive | None = None
    monitor: Literal["auto", "val_auc", "val_dice", "val_loss"] = Field(
        default="auto", description="what chooses the best epoch; auto: the AUC, or the Dice of masks"
    )
    save_steps: Positive | None = Field(default=None, description="also save inside an epoch, every so many steps")
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Positive | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


class EvaluationConfig(Part):
    """How the numbers are made."""

    threshold: Literal["youden", "balanced_accuracy", "accuracy", "sensitivity"] = "accuracy"
    target_sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95
    calibration: Literal["temperature", "none"] = "temperature"
    resamples: Positive = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    min_positives: Positive = 10
    flip_average: bool = Field(default=False, description="mean of the logits of an image and its mirror")
