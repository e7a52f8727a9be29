"""Preprocessing: sizes, ranges and order for any image, rules by their definition, the value's round trip."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medloom.config import PreprocessConfig
from medloom.data.images import Image
from medloom.data.preprocess import IMAGENET_MEAN, Preprocess
from medloom.errors import DataError

SIDE = st.integers(1, 40)


def image(pixels: np.ndarray, bits: int | None = None) -> Image:
    depth = {"u1": 8, "u2": 16, "f4": 0}[pixels.dtype.str[1:]]
    return Image(pixels, depth if bits is None else bits, "L", "png", pixels.nbytes)


@st.composite
def any_image(draw: st.DrawFn) -> Image:
    shape = (draw(SIDE), draw(SIDE), *draw(st.sampled_from([(), (3,)])))
    kind = draw(st.sampled_from(["u1", "u2", "f4"]))
    if kind == "f4":
        return image(draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32))))
    bits = 8 if kind == "u1" else draw(st.sampled_from([10, 12, 16]))
    return image(draw(hnp.arrays(np.dtype(kind), shape, elements=st.integers(0, 2**bits - 1))), bits)


@st.composite
def any_preprocess(draw: st.DrawFn) -> Preprocess:
    config = PreprocessConfig(
        size=(draw(SIDE), draw(SIDE)),
        resize=draw(st.sampled_from(["squash", "pad", "crop"])),
        channels=draw(st.sampled_from(["grey", "replicate", "pseudocolor", "rgb"])),
        intensity=draw(st.sampled_from(["none", "percentile", "equalize"])),
        statistics=draw(st.sampled_from(["paper", "imagenet", "half", "unit"])),
    )
    return Preprocess.from_config(config)


@settings(max_examples=200, deadline=None)
@given(any_preprocess(), any_image())
def test_any_image_has_the_exact_size_type_and_range(preprocess: Preprocess, given_image: Image) -> None:
    stored = preprocess.to_uint8(given_image)
    assert stored.shape == (*preprocess.size, preprocess.stored_channels)
    assert stored.dtype == np.uint8
    x = preprocess(given_image)
    assert x.shape == (preprocess.in_chans, *preprocess.size)
    assert x.dtype == np.float32
    unit = (
        x * np.array(preprocess.std, np.float32)[:, None, None] + np.array(preprocess.mean, np.float32)[:, None, None]
    )
    assert unit.min() >= -1e-6
    assert unit.max() <= 1 + 1e-6


@settings(max_examples=100, deadline=None)
@given(any_preprocess(), any_image())
def test_the_cached_bytes_give_what_serving_computes(preprocess: Preprocess, given_image: Image) -> None:
    cached = preprocess.to_uint8(given_image)
    assert np.array_equal(preprocess.normalise(cached[None])[0], preprocess(given_image))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["none", "percentile", "equalize"]),
    st.lists(st.integers(0, 4095), min_size=2, max_size=64),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_grey_mapping_is_monotone(rule: str, levels: list[int], kind: type) -> None:
    pixels = np.sort(np.array([levels], dtype=np.uint16) // (16 if kind is np.uint8 else 1)).astype(kind)
    preprocess = Preprocess((1, pixels.shape[1]), channels="grey", intensity=rule, mean=(0.5,), std=(0.5,))  # type: ignore[arg-type]
    bits = 8 if kind is np.uint8 else 12
    assert (np.diff(preprocess.to_uint8(image(pixels, bits))[0, :, 0].astype(int)) >= 0).all()


def test_D105_range_comes_from_the_bit_depth_of_the_file() -> None:
    half = np.full((10, 10), 2048, np.uint16)
    preprocess = Preprocess((10, 10))
    assert set(preprocess.to_uint8(image(half, 12)).flat) == {128}
    assert set(preprocess.to_uint8(image(half, 16)).flat) == {8}
    assert set(preprocess.to_uint8(image(np.full((10, 10), 65535, np.uint16), 12)).flat) == {255}


def test_D105_sixteen_bits_and_their_upper_eight_agree_within_a_level() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (90, 70)).astype(np.uint16)
    shallow = (deep >> 8).astype(np.uint8)
    for rule in ("none", "percentile", "equalize"):
        preprocess = Preprocess((45, 33), intensity=rule)  # type: ignore[arg-type]
        a, b = preprocess.to_uint8(image(deep)), preprocess.to_uint8(image(shallow))
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 3


def test_D107_float_without_a_declared_range_is_refused_unless_the_rule_makes_one() -> None:
    wide = np.linspace(-1024, 1024, 100, dtype=np.float32).reshape(10, 10)
    with pytest.raises(DataError, match="D107"):
        Preprocess((8, 8)).to_uint8(image(wide))
    stretched = Preprocess((10, 10), intensity="percentile").to_uint8(image(wide))
    assert stretched.min() == 0
    assert stretched.max() == 255


def test_D111_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="D111"):
        Preprocess((8, 8)).to_uint8(image(np.full((8, 8), np.nan, np.float32)))


def test_same_size_and_no_rule_leaves_the_bytes_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 17), dtype=np.uint8)
    assert np.array_equal(Preprocess((31, 17)).to_uint8(image(pixels))[:, :, 0], pixels)


def test_downscaling_averages_instead_of_picking() -> None:
    lines = np.tile(np.array([0, 255], np.uint8), (64, 32))
    small = Preprocess((8, 8)).to_uint8(image(lines)).astype(int)
    assert np.abs(small - 127.5).max() <= 8


def test_padding_is_black_and_keeps_the_aspect() -> None:
    white = np.full((20, 40), 255, np.uint8)
    padded = Preprocess((40, 40), resize="pad").to_uint8(image(white))[:, :, 0]
    assert (padded[10:30] == 255).all()
    assert (padded[:10] == 0).all()
    assert (padded[30:] == 0).all()


def test_crop_takes_the_centre() -> None:
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 255
    assert (Preprocess((10, 10), resize="crop").to_uint8(image(pixels)) == 255).all()


def test_equalisation_is_the_textbook_formula() -> None:
    pixels = np.random.default_rng(1).normal(90, 20, (64, 64)).clip(0, 255).astype(np.uint8)
    cdf = np.cumsum(np.bincount(pixels.ravel(), minlength=256))
    first = cdf[cdf > 0][0]
    expected = np.rint(255 * (cdf - first).clip(0) / (pixels.size - first))[pixels]
    stored = Preprocess((64, 64), intensity="equalize").to_uint8(image(pixels))[:, :, 0]
    assert np.abs(stored - expected).max() <= 1
    assert stored.min() == 0
    assert stored.max() == 255


def test_a_black_border_does_not_change_what_equalisation_makes_of_the_body() -> None:
    body = np.random.default_rng(2).integers(40, 200, (40, 40), dtype=np.uint8)
    body[0, 0] = 0
    framed = np.zeros((80, 80), np.uint8)
    framed[20:60, 20:60] = body
    alone = Preprocess((40, 40), intensity="equalize").to_uint8(image(body))
    inside = Preprocess((80, 80), intensity="equalize").to_uint8(image(framed))[20:60, 20:60]
    assert np.array_equal(alone, inside)


def test_equalisation_undoes_any_rising_tone_curve() -> None:
    pixels = np.random.default_rng(3).integers(0, 65536, (50, 50)).astype(np.uint16)
    curved = np.rint(65535 * (pixels / 65535) ** 0.6).astype(np.uint16)
    preprocess = Preprocess((50, 50), intensity="equalize")
    a, b = preprocess.to_uint8(image(pixels)).astype(int), preprocess.to_uint8(image(curved)).astype(int)
    assert np.abs(a - b).max() <= 1


def test_percentile_clips_then_stretches() -> None:
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    stored = Preprocess((10, 20), intensity="percentile", percentiles=(10, 90)).to_uint8(image(pixels))[:, :, 0]
    assert (stored[pixels <= 19] == 0).all()
    assert (stored[pixels >= 180] == 255).all()
    assert abs(int(stored[pixels == 99][0]) - 127) <= 1


def test_colour_is_weighed_into_grey_alike_at_both_depths() -> None:
    shallow = np.random.default_rng(4).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    deep = shallow.astype(np.uint16) * 257
    a = Preprocess((9, 9)).to_uint8(image(shallow))
    b = Preprocess((9, 9)).to_uint8(image(deep))
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_pseudocolour_is_three_windows_that_keep_everything() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = Preprocess((16, 16), channels="pseudocolor", mean=(0.0,) * 3, std=(1.0,) * 3)(image(grey))
    order = grey.ravel()
    channels = x.reshape(3, -1)[:, np.argsort(order)]
    assert (np.diff(channels, axis=1) >= 0).all()
    assert np.allclose(channels[0] + channels[2], 2 * np.arange(256) / 255, atol=1e-6)
    assert len(np.unique(channels, axis=1).T) == 256


def test_statistics_by_name() -> None:
    assert Preprocess.from_config(PreprocessConfig()).mean == (0.485, 0.485, 0.485)
    assert Preprocess.from_config(PreprocessConfig(channels="grey", statistics="half")).std == (0.5,)
    assert Preprocess.from_config(PreprocessConfig(channels="grey", statistics="unit")).mean == (0.0,)
    assert Preprocess.from_config(PreprocessConfig(statistics="imagenet")).mean == IMAGENET_MEAN
    grey = Preprocess.from_config(PreprocessConfig(channels="grey", statistics="imagenet"))
    assert grey.mean == pytest.approx((0.449,), abs=1e-9)


@pytest.mark.parametrize("channels", ["grey", "replicate", "pseudocolor", "rgb"])
def test_training_statistics_standardise_the_training_images(channels: str) -> None:
    config = PreprocessConfig(size=12, channels=channels, statistics="train")  # type: ignore[arg-type]
    unset = Preprocess.from_config(config)
    pixels = np.random.default_rng(5).integers(0, 256, (40, 12, 12, unset.stored_channels), dtype=np.uint8)
    rows = np.arange(30)
    preprocess = Preprocess.from_config(config, pixels, rows)
    x = preprocess.normalise(pixels[:30])
    assert np.allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    assert np.allclose(x.std(axis=(0, 2, 3)), 1, atol=1e-5)
    assert Preprocess.from_config(config, pixels, rows[::-1]) == preprocess
    assert Preprocess.from_config(config, (preprocess.mean, preprocess.std)) == preprocess
    assert unset.geometric_part() == preprocess.geometric_part()


def test_unset_statistics_refuse_to_normalise() -> None:
    unset = Preprocess.from_config(PreprocessConfig(size=4, statistics="train"))
    with pytest.raises(ValueError, match="not set"):
        unset.normalise(np.zeros((1, 4, 4, 1), np.uint8))


def test_D111_constant_training_images_give_no_statistics() -> None:
    with pytest.raises(DataError, match="D111"):
        Preprocess.from_config(PreprocessConfig(size=4, statistics="train"), np.full((3, 4, 4, 1), 7, np.uint8))


@settings(max_examples=50, deadline=None)
@given(any_preprocess())
def test_round_trip_through_json(preprocess: Preprocess) -> None:
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.as_dict()))) == preprocess


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"extra": 1}, {"resize": "stretch"}, {"std": [0, 1, 1]}, {"mean": [0.5]}, {"size": [0, 4]},
     {"percentiles": [90, 10]}],
)  # fmt: skip
def test_C507_values_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Preprocess.from_dict(Preprocess().as_dict() | change)


def test_a_wrong_array_is_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        Preprocess((4, 4)).normalise(np.zeros((1, 4, 4, 3), np.uint8))


def test_grey_rules_share_a_cache_and_others_do_not() -> None:
    parts = {
        c: Preprocess.from_config(PreprocessConfig(channels=c)).geometric_part()
        for c in ("grey", "replicate", "pseudocolor", "rgb")
    }  # type: ignore[arg-type]
    assert parts["grey"] == parts["replicate"] == parts["pseudocolor"] != parts["rgb"]
    assert Preprocess().geometric_part() != Preprocess(intensity="equalize").geometric_part()


def test_D128_without_resizing_another_size_is_refused_and_the_own_one_untouched() -> None:
    rule = Preprocess(size=(24, 32), resize="none", channels="rgb")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    assert np.array_equal(rule.to_uint8(image(pixels)), pixels)
    for other in (pixels[:23], pixels.transpose(1, 0, 2), np.repeat(pixels, 2, axis=0)):
        with pytest.raises(DataError) as caught:
            rule.to_uint8(image(np.ascontiguousarray(other)))
        assert caught.value.code == "D128"
        assert f"{other.shape[0]} x {other.shape[1]}" in caught.value.problem
    assert Preprocess.from_dict(rule.as_dict()) == rule
