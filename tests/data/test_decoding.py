"""Images are decoded as what they show."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thawline.data.decoding import hash_files, image_size, read_image

RED = np.array([200, 30, 30])


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "CMYK"])
def test_every_color_mode_becomes_the_same_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image = Image.new("RGB", (8, 8), tuple(RED.tolist()))
    (image.quantize() if mode == "P" else image.convert(mode)).save(file)
    image = read_image(file)
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image), np.broadcast_to(RED, (8, 8, 3)), atol=2)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_twelve_bits_keep_their_grays_whatever_else_is_in_the_file(
    tmp_path: Path, suffix: str
) -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    brighter = ramp.copy()
    brighter[0, 0] = 60_000
    for name, pixels in (("ramp", ramp), ("brighter", brighter), ("dark", ramp // 16)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.{suffix}")
    for depth, levels in ((12, 256), ("auto", 17), (16, 17), (8, 256), (None, 256)):
        seen = np.asarray(read_image(tmp_path / f"ramp.{suffix}", bit_depth=depth))[..., 0]
        assert len(np.unique(seen)) == levels
        if depth is not None:  # the rule depends on nothing in the file
            other = np.asarray(read_image(tmp_path / f"brighter.{suffix}", bit_depth=depth))[..., 0]
            assert (other.ravel()[1:] == seen.ravel()[1:]).all()
    dark = np.asarray(read_image(tmp_path / f"dark.{suffix}", bit_depth=12))[..., 0]
    assert dark.max() == 16  # and not white


def test_floats_are_from_0_to_1_unless_a_depth_is_given(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for name, factor in (("one", 1), ("deep", 4095)):
        Image.fromarray(ramp * factor).save(tmp_path / f"{name}.tiff")
    expected = np.arange(256).reshape(16, 16)
    for name, depth in (("one", "auto"), ("deep", 12), ("one", None), ("deep", None)):
        seen = np.asarray(read_image(tmp_path / f"{name}.tiff", bit_depth=depth))[..., 0]
        assert (seen == expected).all(), (name, depth)
    assert np.asarray(read_image(tmp_path / "deep.tiff"))[1:].min() == 255


def test_grayscale_of_8_and_16_bits_looks_the_same(tmp_path: Path) -> None:
    ramp = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "8.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = (np.asarray(read_image(tmp_path / f"{n}.png")) for n in (8, 16))
    assert eight.shape == (16, 16, 3)
    np.testing.assert_allclose(eight, sixteen, atol=1)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("clear.png", "palette.png"):
        assert np.asarray(read_image(tmp_path / name)).min() == 255


def test_the_cameras_rotation_is_carried_out(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "black")
    image.paste("white", (0, 0, 5, 10))  # a white left edge
    exif = image.getexif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    image.save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "turned.png"))
    assert upright.shape == (20, 10, 3)
    assert upright[0].min() == 255 and upright[-1].max() == 0


def test_bytes_are_read_like_the_file(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    Image.new("RGB", (12, 10), (200, 30, 30)).save(file)
    assert read_image(file.read_bytes()).tobytes() == read_image(file).tobytes()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_the_size_is_that_of_the_upright_image(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"photo.{suffix}"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (64, 32)).save(file, exif=exif)
        assert image_size(file) == read_image(file).size


def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path) -> None:
    image = Image.new("RGB", (800, 400))
    image.save(tmp_path / "photo.jpg")
    image.save(tmp_path / "photo.png")
    assert read_image(tmp_path / "photo.jpg", scale=0.1).size == (200, 100)
    assert read_image(tmp_path / "photo.jpg", scale=0.6).size == (800, 400)
    assert read_image(tmp_path / "photo.png", scale=0.1).size == (800, 400)


def test_a_hash_is_of_the_content_alone(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    first, second, other = hash_files([str(tmp_path / name) for name in "abc"])
    assert first == second == hashlib.sha256(b"one").hexdigest() != other
