import pathlib

import jax
import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mvg_jax.data import dicom
from mvg_jax.data.dicom import decode_dicom, headers
from mvg_jax.data.images import BadImage, decode
from mvg_jax.frames import full_frame
from mvg_jax.tools.render import ViewFormat, render_views, stack_sources
from tests.data.dicom_files import dicom_file

GREY = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300  # 0 .. 3300: 12 bits
AXIAL, SAGITTAL, CORONAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]


def bundled(name):
    """A file inside the pydicom package."""
    path = pydicom.data.get_testdata_file(name, download=False)
    assert pathlib.Path(path).is_relative_to(pathlib.Path(pydicom.data.__file__).parent)
    return pathlib.Path(path).read_bytes()


def physical(image):
    return image.pixels.astype(np.float64) * image.slope + image.intercept


def shown(image):
    """Grey levels 0..255 of the default window, not rounded."""
    low, high = image.window
    return np.clip((physical(image) - low) / (high - low), 0, 1) * 255


# What headers say of values.


def test_values_are_kept_as_stored():
    image = decode_dicom(dicom_file(GREY, BitsStored=12, HighBit=11), "x")
    np.testing.assert_array_equal(image.pixels, GREY)
    assert image.pixels.dtype == np.uint16
    assert (image.slope, image.intercept, image.unit, image.spacing_mm) == (1.0, 0.0, "grey", None)


def test_decode_knows_dicom_by_its_mark():
    np.testing.assert_array_equal(decode(dicom_file(GREY), "no suffix").pixels, GREY)


def test_rescaling_and_hounsfield_units():
    image = decode_dicom(dicom_file(GREY, Modality="CT", RescaleSlope=2, RescaleIntercept=-1024), "x")
    np.testing.assert_array_equal(physical(image), 2.0 * GREY - 1024)
    assert image.unit == "HU"


@pytest.mark.parametrize(
    ("given", "unit"),
    [
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}, "HU"),
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}, "HU"),
        ({"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US"}, "grey"),
        ({"Modality": "CT"}, "grey"),
        ({"Modality": "MR", "RescaleSlope": 2, "RescaleIntercept": 0}, "grey"),
    ],
)
def test_only_rescaled_ct_is_in_hounsfield_units(given, unit):
    assert decode_dicom(dicom_file(GREY, **given), "x").unit == unit


@pytest.mark.parametrize("depth", [np.int16, np.int8])
def test_signed_values(depth):
    values = np.array([[-100, 0], [5, 100]], depth)
    image = decode_dicom(dicom_file(values, Modality="CT", RescaleSlope=1, RescaleIntercept=-10), "x")
    np.testing.assert_array_equal(physical(image), values.astype(float) - 10)
    assert image.pixels.dtype == np.uint16


def test_the_first_of_several_windows():
    image = decode_dicom(dicom_file(GREY, WindowCenter=[40, 500], WindowWidth=[400, 2000]), "x")
    assert image.window == (-160.0, 240.0)
    assert decode_dicom(dicom_file(GREY, WindowCenter=40, WindowWidth=400), "x").window == (-160.0, 240.0)


def test_a_window_is_in_rescaled_values():
    image = decode_dicom(dicom_file(GREY, RescaleSlope=2, RescaleIntercept=-10, WindowCenter=95, WindowWidth=10), "x")
    assert image.window == (90.0, 100.0)


@pytest.mark.parametrize("width", [0, -5, None])
def test_without_a_window_percentiles(width):
    given = {} if width is None else {"WindowCenter": 40, "WindowWidth": width}
    values = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    image = decode_dicom(dicom_file(values, RescaleSlope=2, RescaleIntercept=-10, **given), "x")
    low, high = np.percentile(values * 2.0 - 10, (0.5, 99.5))
    assert image.window == pytest.approx((low, high))


def test_eight_bits_show_their_full_range():
    values = np.array([[10, 20], [30, 63]], np.uint8)
    image = decode_dicom(dicom_file(values), "x")
    assert (image.pixels.dtype, image.window) == (np.uint8, (0.0, 255.0))
    assert decode_dicom(dicom_file(values, BitsStored=6, HighBit=5), "x").window == (0.0, 63.0)


def test_monochrome1_is_bright_where_values_are_low():
    stored = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 1000, "WindowWidth": 1200}
    plain = decode_dicom(dicom_file(GREY, **stored), "x")
    inverted = decode_dicom(dicom_file(GREY, PhotometricInterpretation="MONOCHROME1", **stored), "x")
    np.testing.assert_array_equal(inverted.pixels, GREY)
    np.testing.assert_allclose(physical(inverted), 4095.0 - GREY)
    np.testing.assert_allclose(shown(inverted), 255 - shown(plain), atol=1e-9)
    assert inverted.window[0] < inverted.window[1]
    assert 0 < shown(inverted)[1, 0] < 255  # the window cuts nothing that it should show


@pytest.mark.parametrize("values", [GREY, GREY.astype(np.int16) - 500, (GREY // 20).astype(np.uint8)])
@pytest.mark.parametrize("rescaling", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": 7}])
def test_monochrome1_of_any_depth(values, rescaling):
    plain = decode_dicom(dicom_file(values, **rescaling), "x")
    inverted = decode_dicom(dicom_file(values, PhotometricInterpretation="MONOCHROME1", **rescaling), "x")
    np.testing.assert_array_equal(inverted.pixels, plain.pixels)
    np.testing.assert_allclose(shown(inverted), 255 - shown(plain), atol=1e-9)


def test_monochrome1_on_the_device_is_mirrored_too():
    """The renderer takes the negative slope as it is."""
    values = np.tile(np.arange(8, dtype=np.uint16) * 500, (8, 1))
    views = []
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        image = decode_dicom(dicom_file(values, PhotometricInterpretation=photometric, BitsStored=12, HighBit=11), "x")
        sources = stack_sources([[image.pixels]], [[(image.slope, image.intercept)]], 8, 8)
        frame = jax.tree.map(lambda x: x[None], full_frame(8, 8, image.window, 0))
        views.append(np.asarray(render_views(sources, np.zeros(1, np.int32), frame, ViewFormat(8, 8, "linear")))[0])
    np.testing.assert_allclose(views[1].astype(int), 255 - views[0].astype(int), atol=1)
    assert np.ptp(views[0]) > 200


@pytest.mark.parametrize(
    ("given", "spacing"),
    [
        ({"PixelSpacing": [0.5, 0.5]}, 0.5),
        ({"PixelSpacing": [0.5, 0.7]}, None),
        ({"ImagerPixelSpacing": [0.15, 0.15]}, 0.15),
        ({"PixelSpacing": [0.5, 0.5], "ImagerPixelSpacing": [0.6, 0.6]}, 0.5),
        ({"PixelSpacing": [0, 0]}, None),
        ({}, None),
    ],
)
def test_spacing_of_square_pixels(given, spacing):
    assert decode_dicom(dicom_file(GREY, **given), "x").spacing_mm == spacing


def test_frames():
    stack = np.stack([GREY, GREY + 1])
    content = dicom_file(stack, NumberOfFrames=2)
    np.testing.assert_array_equal(decode_dicom(content, "x").pixels, GREY)
    np.testing.assert_array_equal(decode_dicom(content, "x", frame=1).pixels, GREY + 1)
    with pytest.raises(BadImage, match="x: has 2 frames, no frame 2"):
        decode_dicom(content, "x", frame=2)


def test_enhanced_files_say_it_per_frame_or_for_all():
    def group(name, **facts):
        holder, item = pydicom.Dataset(), pydicom.Dataset()
        for key, value in facts.items():
            setattr(item, key, value)
        setattr(holder, name, [item])
        return holder

    rescaling = [group("PixelValueTransformationSequence", RescaleSlope=s, RescaleIntercept=-5) for s in (2, 3)]
    content = dicom_file(
        np.stack([GREY, GREY]),
        NumberOfFrames=2,
        Modality="CT",
        PerFrameFunctionalGroupsSequence=rescaling,
        SharedFunctionalGroupsSequence=[group("PixelMeasuresSequence", PixelSpacing=[0.4, 0.4])],
    )
    for frame, slope in ((0, 2), (1, 3)):
        image = decode_dicom(content, "x", frame)
        assert (image.slope, image.intercept, image.unit, image.spacing_mm) == (slope, -5.0, "HU", 0.4)


# Colour.


def test_rgb():
    colours = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    np.testing.assert_array_equal(decode_dicom(dicom_file(colours), "x").pixels, colours)


def test_deep_colours_become_eight_bits():
    colours = np.full((2, 2, 3), [0, 256, 65535], np.uint16)
    np.testing.assert_array_equal(decode_dicom(dicom_file(colours), "x").pixels[0, 0], [0, 1, 255])


# Real files, of the pydicom package.


def test_real_ct():
    image = decode_dicom(bundled("CT_small.dcm"), "ct")
    assert (image.pixels.shape, image.unit, image.spacing_mm) == ((128, 128), "HU", 0.661468)
    assert (physical(image).min(), physical(image).max()) == (128 - 1024, 2191 - 1024)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ],
)
def test_encodings_of_one_mr_are_equal(name):
    plain, other = decode_dicom(bundled("MR_small.dcm"), "mr"), decode_dicom(bundled(name), name)
    np.testing.assert_array_equal(physical(other), physical(plain))
    assert other.window == plain.window == (-200.0, 1400.0)
    assert other.pixels.dtype == np.uint16


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_rle_16bit.dcm",
    ],
)
def test_encodings_of_one_colour_card_are_alike(name):
    card = decode_dicom(bundled("SC_rgb_rle.dcm"), "card").pixels
    image = decode_dicom(bundled(name), name)
    assert (image.pixels.dtype, image.pixels.shape) == (np.uint8, (100, 100, 3))
    assert np.abs(image.pixels.astype(int) - card).mean() < 4
    assert tuple(card[0, 0]) == (255, 0, 0)


def test_a_palette_becomes_colours():
    image = decode_dicom(bundled("examples_palette.dcm"), "us")
    assert (image.pixels.dtype, image.pixels.shape) == (np.uint8, (350, 800, 3))
    data = pydicom.dcmread(pydicom.data.get_testdata_file("examples_palette.dcm", download=False))
    red = np.frombuffer(data.RedPaletteColorLookupTableData, "<u2") >> 8
    np.testing.assert_array_equal(image.pixels[..., 0], red[data.pixel_array])


def test_first_frame_of_an_ultrasound_cine():
    image = decode_dicom(bundled("examples_ybr_color.dcm"), "us")
    assert (image.pixels.dtype, image.pixels.shape) == (np.uint8, (240, 320, 3))
    assert headers(bundled("examples_ybr_color.dcm"), "us")["frames"] == 30


# Bad files.


@pytest.mark.parametrize("name", ["test-SR.dcm", "rtplan.dcm"])
def test_no_pixel_data(name):
    with pytest.raises(BadImage, match=f"{name}: no pixel data"):
        decode_dicom(bundled(name), name)


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "JPGExtended.dcm", "badVR.dcm", "no_meta.dcm"])
def test_real_files_that_cannot_be_decoded(name):
    with pytest.raises(BadImage, match=name):
        decode_dicom(bundled(name), name)


@pytest.mark.parametrize(
    "broken",
    [
        {"Rows": 10**4},
        {"Rows": 0},
        {"BitsAllocated": None},
        {"PhotometricInterpretation": "HSV"},
        {"RescaleSlope": 0, "RescaleIntercept": 1},
    ],
)
def test_headers_that_do_not_fit(broken):
    content = dicom_file(GREY, **broken)
    with pytest.raises(BadImage, match=r"^x: "):
        decode_dicom(content, "x")


def test_fewer_frames_than_promised():
    content = dicom_file(GREY[None], NumberOfFrames=3)
    with pytest.raises(BadImage, match=r"^x: "):
        decode_dicom(content, "x", frame=2)


def test_every_cut_of_a_file_is_a_bad_image_or_an_image():
    content = bundled("MR_small_RLE.dcm")
    outcomes = set()
    for length in range(0, len(content), 97):
        try:
            decode_dicom(content[:length], "cut")
            outcomes.add("image")
        except BadImage:
            outcomes.add("bad")
    assert "bad" in outcomes


def test_too_many_pixels(monkeypatch):
    monkeypatch.setattr(dicom, "MAX_PIXELS", 11)
    with pytest.raises(BadImage, match="4 x 3 pixels are too many"):
        decode_dicom(dicom_file(GREY), "x")


def test_a_deflated_file_may_not_grow_without_bounds(monkeypatch):
    content = dicom_file(np.zeros((400, 500), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
    assert decode_dicom(content, "x").pixels.shape == (400, 500)
    assert len(content) < 2000
    monkeypatch.setattr(dicom, "MAX_INFLATED", 100_000)
    for use in (decode_dicom, headers):
        with pytest.raises(BadImage, match="x: unpacks to more than 100000 bytes"):
            use(content, "x")


# Headers.


def test_headers_say_what_can_be_asked():
    facts = headers(
        dicom_file(
            GREY,
            Modality="MR",
            BodyPartExamined="KNEE ",
            ImageOrientationPatient=SAGITTAL,
            StudyDescription="Knee  left",
            StudyInstanceUID="1.2.3.4",
            PatientName="Doe^Jane",
            PatientID="77",
            PatientBirthDate="19700101",
            ReferringPhysicianName="Roe",
        ),
        "x",
    )
    study = facts.pop("study")
    assert facts == {
        "modality": "MRI",
        "body_part": "knee",
        "plane": "sagittal",
        "study_description": "knee left",
        "frames": 1,
    }
    assert len(study) == 16
    assert "1.2.3.4" not in study


def test_headers_of_a_file_that_says_nothing():
    facts = headers(dicom_file(None), "x")
    assert {key: facts[key] for key in ("modality", "body_part", "plane", "study_description", "frames")} == {
        "modality": "",
        "body_part": "",
        "plane": "",
        "study_description": "",
        "frames": 0,
    }


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        (AXIAL, "axial"),
        (SAGITTAL, "sagittal"),
        (CORONAL, "coronal"),
        ([0.97, 0.2, 0, -0.2, 0.97, 0.1], "axial"),
        ([1, 0, 0, 0, 0.7071, 0.7071], ""),
        ([1, 0, 0, 1, 0, 0], ""),
        (None, ""),
    ],
)
def test_planes(orientation, plane):
    given = {} if orientation is None else {"ImageOrientationPatient": orientation}
    assert headers(dicom_file(GREY, **given), "x")["plane"] == plane


@pytest.mark.parametrize(
    ("name", "modality", "plane", "body_part"),
    [
        ("CT_small.dcm", "CT", "axial", ""),
        ("J2K_pixelrep_mismatch.dcm", "CT", "axial", "head"),
        ("examples_overlay.dcm", "MRI", "axial", "abdomen"),
        ("JPEG2000.dcm", "Nuclear medicine", "", "whole body"),
        ("liver_1frame.dcm", "", "axial", ""),
    ],
)
def test_headers_of_real_files(name, modality, plane, body_part):
    facts = headers(bundled(name), name)
    assert (facts["modality"], facts["plane"], facts["body_part"]) == (modality, plane, body_part)


def test_headers_of_garbage():
    with pytest.raises(BadImage, match="x: "):
        headers(b"\0" * 200, "x")
