"""NIfTI files: what is wrong with one is found before its voxels are used, and said in one line."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import save, spoil, volume_of

from medloom.data import nifti
from medloom.data.nifti import parse_header
from medloom.data.volumes import read_nifti
from medloom.errors import DataError, MedloomError


def refused(path: Path, **options: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read_nifti(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_voxels_and_place_are_those_that_nibabel_reads(tmp_path: Path, name: str, kind: str) -> None:
    path = save(tmp_path / name, volume_of(kind=kind))
    ours, theirs = read_nifti(path), nibabel.load(path)
    assert ours.array.dtype == np.dtype(kind)
    np.testing.assert_array_equal(ours.array, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)
    assert ours.spacing == (1.5, 2.0, 3.0)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(volume_of(), np.diag([-1.0, 2.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "a.nii.gz")
    ours = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(ours.array, volume_of())
    assert ours.codes == "LAS"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_N301_an_affine_that_is_not_finite(tmp_path: Path, bad: float) -> None:
    path = spoil(save(tmp_path / "a.nii", volume_of()), srow=(1, 0, 0, bad, 0, 1, 0, 0, 0, 0, 1, 0))
    assert refused(path).code == "N301"
    path = spoil(save(tmp_path / "b.nii", volume_of()), codes=(1, 0), quatern=(bad, 0, 0, 0, 0, 0))
    assert refused(path).code == "N301"


def test_N301_a_qform_that_is_no_rotation(tmp_path: Path) -> None:
    path = spoil(save(tmp_path / "a.nii", volume_of()), codes=(1, 0), quatern=(1, 1, 0, 0, 0, 0))
    assert refused(path).code == "N301"


def test_N302_no_place_at_all(tmp_path: Path) -> None:
    zero = spoil(save(tmp_path / "a.nii", volume_of()), srow=(0,) * 12)
    assert refused(zero).code == "N302"
    assert refused(zero, prefer="sform").code == "N302"
    assert read_nifti(zero, prefer="qform").spacing == (1.5, 2.0, 3.0)
    flat = spoil(save(tmp_path / "b.nii", volume_of()), srow=(1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0))
    assert refused(flat).code == "N302"
    nowhere = spoil(save(tmp_path / "c.nii", volume_of()), codes=(0, 0))
    assert "left and right" in refused(nowhere).problem


def test_N303_two_places_apart(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", volume_of())
    near = spoil(path, srow=(1.5, 0, 0, 0.9, 0, 2, 0, 0, 0, 0, 3, 0))
    assert read_nifti(near).affine[0, 3] == pytest.approx(0.9)
    far = spoil(path, srow=(1.5, 0, 0, 4, 0, 2, 0, 0, 0, 0, 3, 0))
    problem = refused(far)
    assert problem.code == "N303"
    assert "4 mm" in problem.problem
    assert read_nifti(far, prefer="sform").affine[0, 3] == 4
    assert read_nifti(far, prefer="qform").affine[0, 3] == 0


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_N304_truncated_anywhere(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / name, volume_of()).read_bytes()
    for kept in (3, 40, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:kept])
        # Of a few bytes nobody can say what they were.
        assert refused(tmp_path / name).code == ("D102" if name == "a.nii" and kept < 4 else "N304"), kept


def test_N304_flipped_bits_in_gzip_are_found_by_its_sum(tmp_path: Path) -> None:
    whole = bytearray(save(tmp_path / "a.nii.gz", volume_of((20, 20, 20))).read_bytes())
    whole[len(whole) // 2] ^= 16
    (tmp_path / "a.nii.gz").write_bytes(whole)
    assert refused(tmp_path / "a.nii.gz").code in ("N304", "N302", "N301")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_N305_sizes_that_no_memory_holds(tmp_path: Path, name: str) -> None:
    path = spoil(save(tmp_path / name, volume_of()), dim=(3, 32767, 32767, 32767, 1, 1, 1, 1))
    problem = refused(path)
    assert problem.code == "N305"
    assert "32767 x 32767 x 32767" in problem.problem


def test_N305_a_limit_for_honest_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii", volume_of())
    monkeypatch.setattr(nifti, "MOST_BYTES", 100)
    assert refused(path).code == "N305"


def test_N306_four_axes_two_axes_one_slice(tmp_path: Path) -> None:
    affine = np.eye(4)
    for shape, fits in (((4, 5, 6, 1), True), ((4, 5, 6, 1, 1), True), ((4, 5, 6, 2), False), ((4, 5, 6, 1, 3), False),
                        ((4, 5), False), ((4, 5, 1), False)):  # fmt: skip
        path = save(tmp_path / "a.nii", np.ones(shape, dtype=np.uint8), affine)
        if fits:
            assert read_nifti(path).array.shape == (4, 5, 6)
        else:
            assert refused(path).code == "N306", shape
    path = spoil(save(tmp_path / "b.nii", volume_of()), dim=(3, 9, -7, 5, 1, 1, 1, 1))
    assert refused(path).code == "N306"


def test_N307_spacing_that_no_scanner_makes(tmp_path: Path) -> None:
    for spacing in ((60, 1, 1), (0.001, 0.001, 0.001)):
        path = save(tmp_path / "a.nii", volume_of(), np.diag([*spacing, 1.0]))
        assert refused(path).code == "N307", spacing
    for pixdim in ((1, 0, 1, 1, 0, 0, 0, 0), (1, -1, 1, 1, 0, 0, 0, 0)):
        path = spoil(save(tmp_path / "b.nii", volume_of()), codes=(1, 0), pixdim=pixdim)
        assert refused(path).code == "N307", pixdim
    anisotropic = save(tmp_path / "c.nii", volume_of(), np.diag([0.5, 0.5, 5.0, 1.0]))
    assert read_nifti(anisotropic).spacing == (0.5, 0.5, 5.0)


def test_N307_metres_and_micrometres_that_say_so_become_millimetres(tmp_path: Path) -> None:
    for unit, scale in ((1, 0.001), (3, 1000.0)):
        path = save(tmp_path / "a.nii", volume_of(), np.diag([scale, scale, 2 * scale, 1.0]))
        spoil(path, units=(unit,))
        assert read_nifti(path).spacing == pytest.approx((1, 1, 2))


def test_N310_the_first_bytes_decide_and_not_the_name(tmp_path: Path) -> None:
    plain, packed = save(tmp_path / "a.nii", volume_of()), save(tmp_path / "b.nii.gz", volume_of())
    plain.rename(tmp_path / "c.nii.gz")
    packed.rename(tmp_path / "d.nii")
    for name in ("c.nii.gz", "d.nii"):
        np.testing.assert_array_equal(read_nifti(tmp_path / name).array, volume_of())


def test_N310_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    honest = gzip.decompress(save(tmp_path / "a.nii.gz", volume_of()).read_bytes())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(honest + bytes(64 << 20), 1))
    assert refused(tmp_path / "a.nii.gz").code == "N310"


@pytest.mark.parametrize(
    ("number", "word"), [(128, "RGB24"), (32, "complex"), (1, "one bit"), (2304, "RGBA32"), (99, "99")]
)
def test_N311_kinds_of_voxels_that_are_not_read_are_named(tmp_path: Path, number: int, word: str) -> None:
    problem = refused(spoil(save(tmp_path / "a.nii", volume_of()), datatype=(number,)))
    assert problem.code == "N311"
    assert word in problem.problem


def test_N311_slopes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", volume_of())
    for slope in (0.0, math.nan, math.inf):
        np.testing.assert_array_equal(read_nifti(spoil(path, slope=(slope, 7.0))).array, volume_of())
    scaled = read_nifti(spoil(path, slope=(0.5, -1000.0))).array
    np.testing.assert_allclose(scaled, volume_of() * 0.5 - 1000)
    assert scaled.dtype == np.float32
    assert refused(spoil(path, slope=(2.0, math.nan))).code == "N311"


def test_N311_big_endian_and_64_bits(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nibabel.save(nibabel.Nifti1Image(volume_of(), np.eye(4), header), tmp_path / "a.nii")
    assert struct.unpack_from(">i", (tmp_path / "a.nii").read_bytes())[0] == 348
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii").array, volume_of())
    nibabel.save(nibabel.Nifti1Image(volume_of(kind="uint64"), np.eye(4), dtype=np.uint64), tmp_path / "b.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii").array, volume_of())


def test_N311_a_header_without_its_voxels(tmp_path: Path) -> None:
    path = spoil(save(tmp_path / "a.nii", volume_of()), magic=(b"ni1\0",))
    assert refused(path).code == "N311"


def test_D101_D102_D111_D114_as_of_every_image(tmp_path: Path) -> None:
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "text.nii.gz").write_bytes(b"<html>not found</html>" * 40)
    voxels = volume_of(kind="float32")
    voxels[1, 2, 3] = np.nan
    save(tmp_path / "nan.nii", voxels)
    found = {name: refused(tmp_path / name).code for name in ("empty.nii", "text.nii.gz", "nan.nii", "gone.nii")}
    assert found == {"empty.nii": "D101", "text.nii.gz": "D102", "nan.nii": "D111", "gone.nii": "D114"}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.integers(0, 347), st.booleans())
def test_no_header_gets_past_the_checks_unnamed(noise: bytes, at: int, real: bool) -> None:
    """Whatever the bytes, parsing gives a header whose every number makes sense, or a coded refusal."""
    raw = bytearray(nibabel.Nifti1Image(volume_of(), np.eye(4)).to_bytes()[:540])
    raw = raw[:at] + bytearray(noise) + raw[at + len(noise) :] if real else bytearray(noise)
    try:
        header = parse_header(bytes(raw[:540]), "x")
    except MedloomError:
        return
    assert min(header.shape) > 0
    assert np.isfinite(header.affine).all()
    assert abs(np.linalg.det(header.affine)) > 0
    assert math.isfinite(header.slope)
    assert header.start >= 348
