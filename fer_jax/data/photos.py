"""Any photograph, whatever its file, as an upright 8-bit array, grey or RGB."""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Those that Pillow decodes itself or by a library; others, such as EPS, start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".heic", ".heif", ".avif", ".jp2", ".jxl",
)  # fmt: skip
"""What the names of images end with, in any case; those of the last line are read as little as others, but
are refused, and not passed over."""

LARGEST_SIDE = 20_000
"""A photograph that is wider or higher, in pixels, is refused."""

_OPENED = (stat.S_IFREG, stat.S_IFDIR)  # the latter fails with the system's words; a pipe would be waited for
_WHITE_16_BIT = 65535
_BAND = 64  # rows at once, where an array or a copy of the whole image would need far more memory than it
_opening = threading.Lock()


class Photo(NamedTuple):
    """A decoded photograph.

    Attributes:
      pixels: uint8 [height, width], grey, or [height, width, 3], RGB, where any pixel has a colour.
      width, height: of the whole upright photograph in pixels; `pixels` has fewer where it was shrunk. What
        lies at column x and row y of `pixels` lies at x * width / pixels.shape[1] and
        y * height / pixels.shape[0] of the photograph.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int


class Picture(NamedTuple):
    """A photograph to come: its name, what decodes it or raises `InputError`, and of a frame its time."""

    name: str
    decode: Callable[[], Photo]
    seconds: float | None = None


def decode(data: bytes | str | Path, where: str, largest: int = 4096) -> Photo:
    """Decodes a photograph; of an animation its first picture.

    EXIF's orientation is applied, and what is transparent lies over white. White is 65,535 in 16-bit grey;
    in 32-bit integers and in floating point, which say no white, it is the least of 255 and 65,535 (of
    floating point, 1 too) that the brightest pixel does not exceed. RGB whose channels are equal everywhere
    is grey.

    Args:
      data: the file's bytes, or its path.
      where: what an error calls the photograph.
      largest: a longer side is shrunk to so many pixels, antialiased.

    Raises:
      InputError: the file cannot be read, is empty, no whole image of `FORMATS`, or wider or higher than
        `LARGEST_SIDE`; a line that starts with `where`.
    """
    with _file(data, where) as file, _in_a_line(where), _quietly():
        image = _open(file, where)
        full = image.size
        # A JPEG may be decoded at a half, a quarter or an eighth right away.
        image.draft(None, _fitting(full, largest))
        return _photo(image, full, where, largest)


def of_image(image: "Image", where: str, largest: int = 4096) -> Photo:
    """The same of an image of Pillow's, opened or made, which stays as it is."""
    with _in_a_line(where), _quietly():
        return _photo(image, image.size, where, largest)


def _photo(image: "Image", full: tuple[int, int], where: str, largest: int) -> Photo:
    image.load()
    image = resized(_plain(image, where), _fitting(full, largest))
    upright = _upright(image)
    turned = upright.size != image.size
    pixels = np.asarray(_over_white(upright))
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    width, height = full[::-1] if turned else full
    return Photo(pixels, width, height)


def resized(image: "Image", size: tuple[int, int]) -> "Image":
    """An image of modes L, LA, RGB or RGBA at (width, height) pixels, bilinear.

    Made smaller, each pixel is a weighted mean of all that it covers (antialiased).
    """
    from PIL import Image

    # reducing_gap: far larger ones are first averaged by whole numbers, at a difference that no eye sees.
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def squared(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image uint8 [H, W] or [H, W, 3] at `side` x `side` pixels, bilinear and antialiased.

    A longer side is squashed, as by Keras's `image_dataset_from_directory`: a cut could lose a chin, and
    pictures of faces are nearly square.
    """
    from PIL import Image

    return np.asarray(resized(Image.fromarray(pixels), (side, side)))


@contextlib.contextmanager
def _file(data: bytes | str | Path, where: str) -> Iterator[IO[bytes]]:
    """The bytes as a file, neither missing, a directory, a pipe nor empty."""
    try:
        if not isinstance(data, bytes) and stat.S_IFMT(os.stat(data).st_mode) not in _OPENED:
            raise InputError(f"{where}: not a regular file; expected an image")
        file = io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb")  # noqa: SIM115
    except (OSError, ValueError) as error:  # the latter of a path with a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{where}: cannot be read ({reason}); expected an image") from error
    with file:
        if not file.seek(0, io.SEEK_END):
            raise InputError(f"{where}: empty file; expected an image")
        file.seek(0)
        yield file


@contextlib.contextmanager
def _in_a_line(where: str) -> Iterator[None]:
    """Turns what Pillow raises for a damaged file, a dozen kinds of exceptions, into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{where}: not enough memory to decode it") from error
    except Exception as error:
        raise InputError(f"{where}: unreadable image; expected a whole {_words()}") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF and the like, which Pillow passes over
        yield


def _words() -> str:
    return ", ".join(FORMATS[:-1]) + f" or {FORMATS[-1]}"


def _open(file: IO[bytes], where: str) -> "Image":
    from PIL import Image

    with _opening:
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST_SIDE**2
        try:
            image = Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = bound
    if max(image.size) > LARGEST_SIDE:
        raise InputError(
            f"{where}: {image.width}x{image.height} pixels; expected at most {LARGEST_SIDE} a side"
        )
    return image


def _fitting(size: tuple[int, int], largest: int) -> tuple[int, int]:
    """The size, or the one of the same shape whose longer side is `largest`."""
    longer = max(size)
    if longer <= largest:
        return size
    width, height = (max(1, round(side * largest / longer)) for side in size)
    return width, height


def _plain(image: "Image", where: str) -> "Image":
    """With 8 bits a channel: mode L, RGB or RGBA."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        grey = Image.fromarray(_eight_bit(image, where))
        grey.info = image.info  # has the orientation
        return grey
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        mode = "RGBA"
    else:
        mode = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _bands(image: "Image") -> "Iterator[tuple[slice, Image]]":
    """The image in pieces of `_BAND` rows: which ones, and they."""
    for top in range(0, image.height, _BAND):
        rows = slice(top, min(top + _BAND, image.height))
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _eight_bit(image: "Image", where: str) -> NDArray[np.uint8]:
    """Grey of 16 or 32 bits a pixel, scaled so that white is 255; below 0 is black."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        white = _WHITE_16_BIT
    else:
        brightest = np.max([np.asarray(band).max() for _, band in _bands(image)])
        possible = [w for w in (*(1,) * (image.mode == "F"), 255, _WHITE_16_BIT) if brightest <= w]
        if not possible:  # not a number, too
            raise InputError(f"{where}: grey of up to {brightest:g}; expected at most {_WHITE_16_BIT}")
        white = possible[0]
    grey = np.empty((image.height, image.width), np.uint8)
    transparent = image.info.get("transparency")  # of a PNG, one grey, which lies over white
    for rows, band in _bands(image):
        values = np.asarray(band)
        grey[rows] = np.clip(np.rint(values * np.float32(255 / white)), 0, 255)
        if isinstance(transparent, int):
            grey[rows][values == transparent] = 255
    return grey


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says no orientation; the picture is whole, and shown so by others too
        return image


def _over_white(image: "Image") -> "Image":
    from PIL import Image

    if image.mode != "RGBA":
        return image
    over = Image.new("RGB", image.size)
    for rows, band in _bands(image):
        white = Image.new("RGBA", band.size, "white")
        over.paste(Image.alpha_composite(white, band).convert("RGB"), (0, rows.start))
    return over
