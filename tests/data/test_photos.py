"""Every kind of photograph comes out upright, in 8 bits, grey or RGB; whatever is none ends in one line."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fer_jax.data import photos
from fer_jax.errors import InputError

GREY = np.random.default_rng(0).integers(0, 256, (6, 9), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(image, kind="PNG", **options):
    return photos.decode(encoded(image, kind, **options), "it").pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_and_colour_keep_their_pixels_in_every_lossless_format(kind):
    np.testing.assert_array_equal(decoded(Image.fromarray(GREY), kind), GREY)
    if kind != "GIF":  # has a palette
        np.testing.assert_array_equal(decoded(Image.fromarray(COLOUR), kind), COLOUR)


def test_jpeg_and_webp_are_read_and_an_animation_gives_its_first_picture():
    smooth = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8), (16, 16)).copy()
    for kind in ("JPEG", "WEBP"):
        assert np.abs(decoded(Image.fromarray(smooth), kind, quality=95).astype(int) - smooth).max() < 8
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    np.testing.assert_array_equal(decoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), GREY)


def test_channels_that_are_equal_everywhere_are_grey_and_one_coloured_pixel_is_colour():
    equal = np.stack([GREY] * 3, -1)
    assert decoded(Image.fromarray(equal)).shape == (6, 9)
    equal[5, 8, 0] ^= 1
    assert decoded(Image.fromarray(equal)).shape == (6, 9, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_every_orientation_of_exif_is_made_upright(orientation, kind):
    # How the stored rows and columns of the upright picture lie, from the EXIF standard's table.
    stored = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.T, 6: np.rot90, 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16], upright[8:, :16] = 250, 120
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored(upright))), kind, exif=exif)
    photo = photos.decode(data, "it")
    assert (photo.width, photo.height) == (32, 16)
    assert np.abs(photo.pixels.astype(int) - upright).max() < 25


def test_damaged_exif_is_passed_over(recwarn):
    np.testing.assert_array_equal(decoded(Image.fromarray(GREY), exif=b"Exif\0\0garbage"), GREY)
    assert not recwarn.list


def test_what_is_transparent_lies_over_white():
    alpha = np.zeros((6, 9), np.uint8)
    alpha[0, 0], alpha[0, 1] = 255, 128
    pixels = decoded(Image.fromarray(np.dstack([COLOUR, alpha])))
    np.testing.assert_array_equal(pixels[0, 0], COLOUR[0, 0])
    expected = 255 + (COLOUR[0, 1].astype(int) - 255) * 128 / 255
    np.testing.assert_allclose(pixels[0, 1], expected, atol=1)
    assert (pixels[1:] == 255).all()
    grey = decoded(Image.fromarray(np.dstack([GREY, alpha])))
    assert grey.shape == (6, 9)
    assert grey[0, 0] == GREY[0, 0]
    assert (grey[1:] == 255).all()


def test_palettes_with_and_without_a_transparent_colour_are_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 250])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decoded(image), [[[200, 10, 20], [30, 40, 250]]])
    np.testing.assert_array_equal(decoded(image, transparency=1), [[[200, 10, 20], [255] * 3]])


def test_a_grey_png_with_a_transparent_value_has_white_there():
    image = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert decoded(image, transparency=9).tolist() == [[7, 255]]


def test_bitmaps_are_black_and_white():
    assert decoded(Image.fromarray(GREY > 127)).tolist() == np.where(GREY > 127, 255, 0).tolist()


def test_sixteen_bit_grey_is_scaled_not_cut_off():
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    assert decoded(Image.fromarray(values)).tolist() == [[0, 0, 1, 128, 255]]
    assert decoded(Image.fromarray(values), "TIFF").tolist() == [[0, 0, 1, 128, 255]]


def test_a_dark_pgm_of_sixteen_bits_stays_dark():
    values = np.array([[0, 160, 40]], np.int32)
    assert decoded(Image.fromarray(values), "PPM").tolist() == [[0, 1, 0]]


def test_a_transparent_grey_of_sixteen_bits_lies_over_white():
    values = np.array([[5, 257, 65535]], np.uint16)
    assert decoded(Image.fromarray(values), transparency=257).tolist() == [[0, 255, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[-1, 0, 0.5, 1]], np.float32), [0, 0, 128, 255]),
        (np.array([[0, 1, 254.6, 255]], np.float32), [0, 1, 255, 255]),
        (np.array([[0, 257, 65535]], np.float32), [0, 1, 255]),
        (np.array([[-5, 0, 255]], np.int32), [0, 0, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
    ],
)
def test_floats_and_long_integers_are_scaled_by_the_least_white_that_holds_them(values, expected):
    assert decoded(Image.fromarray(values), "TIFF").tolist() == [expected]


@pytest.mark.parametrize("value", [np.nan, np.inf, 70000.0])
def test_grey_beyond_every_white_or_no_number_is_refused(value):
    with pytest.raises(InputError, match=r"^it: grey of up to .*; expected at most 65535$"):
        decoded(Image.fromarray(np.full((2, 2), value, np.float32)), "TIFF")


def test_cmyk_and_ycbcr_come_out_as_rgb():
    image = Image.new("RGB", (16, 16), (250, 30, 60))
    for mode, kind in (("CMYK", "TIFF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")):
        pixels = decoded(image.convert(mode), kind)
        assert pixels.shape == (16, 16, 3)
        assert np.abs(pixels.astype(int) - (250, 30, 60)).max() < 6, (mode, kind)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_photograph_is_shrunk_and_tells_its_own_size(kind):
    left = np.zeros((1000, 3000), np.uint8)
    left[:, :1500] = 240
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: what was left is above
    photo = photos.decode(encoded(Image.fromarray(left), kind, exif=exif), "it", largest=300)
    assert photo.pixels.shape == (300, 100)
    assert (photo.width, photo.height) == (1000, 3000)
    assert photo.pixels[:140].min() > 230
    assert photo.pixels[160:].max() < 10


def test_shrinking_takes_the_mean_of_what_a_pixel_covers():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    pixels = photos.decode(encoded(Image.fromarray(stripes)), "it", largest=8).pixels
    assert np.abs(pixels[1:-1, 1:-1].astype(int) - 100).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_side_of_20_000_pixels_is_read_and_one_more_is_refused(kind):
    photo = photos.decode(encoded(Image.new("L", (20_000, 3), 77), kind), "it")
    assert photo.pixels.shape == (1, 4096)
    assert (photo.pixels == 77).all()
    with pytest.raises(InputError, match=r"^it: 3x20001 pixels; expected at most 20000 a side$"):
        photos.decode(encoded(Image.new("L", (3, 20_001)), kind), "it")


def test_20_000_by_20_000_pixels_are_read():
    side = 20_000
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit a pixel, grey
    rows = (b"\0" + b"\xff" * (side // 2 // 8) + b"\0" * (side // 2 // 8)) * side
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content
        data += struct.pack(">I", zlib.crc32(kind + content))
    photo = photos.decode(data, "it")
    assert (photo.width, photo.height, photo.pixels.shape) == (side, side, (4096, 4096))
    assert photo.pixels[:, :2040].min() == 255
    assert photo.pixels[:, 2056:].max() == 0


def test_an_opened_image_stays_as_it_is(tmp_path):
    Image.new("L", (8_200, 16)).save(tmp_path / "wide.jpg")
    with Image.open(tmp_path / "wide.jpg") as image:
        assert photos.of_image(image, "it").pixels.shape == (8, 4096)
        assert image.size == (8_200, 16)


def test_many_pixels_are_no_decompression_bomb_and_pillow_s_bound_stays_as_it_was(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decoded(Image.fromarray(GREY)).shape == (6, 9)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert not recwarn.list


def test_a_path_is_read_like_its_bytes(tmp_path):
    path = tmp_path / "without a suffix"
    path.write_bytes(encoded(Image.fromarray(COLOUR)))
    for name in (path, str(path)):
        np.testing.assert_array_equal(photos.decode(name, "it").pixels, COLOUR)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it: empty file; expected an image"),
        (b"not an image", "it: unreadable image; expected a whole PNG, JPEG, WEBP, BMP, GIF, TIFF or PPM"),
        (encoded(Image.fromarray(COLOUR))[:-30], "it: unreadable image"),
        (encoded(Image.fromarray(np.tile(COLOUR, (20, 20, 1))), "JPEG")[:2000], "it: unreadable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it: unreadable image"),
    ],
)
def test_what_is_no_whole_image_ends_in_one_line(content, words, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for data in (content, path):
        with pytest.raises(InputError) as error:
            photos.decode(data, "it")
        assert str(error.value).startswith(words)
        assert "\n" not in str(error.value)


def test_a_missing_file_and_a_directory_end_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^it: cannot be read \(No such file or directory\)"):
        photos.decode(tmp_path / "none.png", "it")
    with pytest.raises(InputError, match=r"^it: cannot be read \(Is a directory\)"):
        photos.decode(tmp_path, "it")


def test_pipes_devices_and_impossible_paths_end_in_one_line_and_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    reading, writing = os.pipe()  # what the shell's <(...) gives
    with open(reading), open(writing):
        for path in (tmp_path / "fifo.jpg", f"/dev/fd/{reading}", "/dev/null"):
            with pytest.raises(InputError, match=r"^it: not a regular file; expected an image$"):
                photos.decode(path, "it")
    with pytest.raises(InputError, match=r"^it: cannot be read \(.*embedded null .*\); expected an image$"):
        photos.decode("a\0b", "it")


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_an_image_higher_than_a_band_of_rows_is_scaled_whole(dtype):
    values = np.linspace(0, 65535, 3 * 200).reshape(200, 3).astype(dtype)
    expected = np.rint(values * np.float32(255 / 65535))
    np.testing.assert_array_equal(decoded(Image.fromarray(values), "TIFF"), expected)


def test_an_image_higher_than_a_band_of_rows_lies_over_white_whole():
    rgba = np.random.default_rng(2).integers(0, 256, (200, 3, 4), np.uint8)
    image = Image.fromarray(rgba)
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    np.testing.assert_array_equal(decoded(image), expected)
