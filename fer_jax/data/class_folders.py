"""Reads class folders: train/ and test/, in each a folder an emotion, in those png or jpg files."""

import io
import posixpath

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fer_jax.data import containers
from fer_jax.data.dataset import SIDE, Rows
from fer_jax.data.sources import FOLDER_USAGE, Source, is_image
from fer_jax.errors import InputError

SPELLINGS = {
    spelling: label
    for label, spellings in enumerate(
        (
            ("angry", "anger"),
            ("disgust", "disgusted"),
            ("fear", "fearful"),
            ("happy", "happiness"),
            ("sad", "sadness"),
            ("surprise", "surprised"),
            ("neutral",),
        )
    )
    for spelling in spellings
}
"""Label by the name of a class folder, in lower case."""

# A 48x48 png or jpg has a few kB: what is far larger is not read into memory to find out what it is.
_LARGEST_IMAGE = 1 << 20


def class_images(source: Source) -> list[tuple[str, int, int]]:
    """(path below train/ and test/'s parent, label, usage) of every image, in the order of the paths.

    Raises:
      InputError: a folder is no emotion or holds no image, or an image lies outside the class folders.
    """
    prefix = f"{source.member}/" if source.member else ""
    listing = containers.listing(source.container)
    found = []
    for name in listing.files:
        parts = name.removeprefix(prefix).split("/")
        if not name.startswith(prefix) or parts[0].lower() not in FOLDER_USAGE or not is_image(name):
            continue
        if len(parts) != 3:
            raise InputError(f"{source}: {name}: expected images only in {parts[0]}/EMOTION/")
        found.append(("/".join(parts), _label(source, parts), FOLDER_USAGE[parts[0].lower()]))
    filled = {posixpath.dirname(path) for path, _, _ in found}
    for name in listing.folders:
        parts = name.removeprefix(prefix).split("/")
        if name.startswith(prefix) and len(parts) == 2 and parts[0].lower() in FOLDER_USAGE:
            _label(source, parts)
            if "/".join(parts) not in filled:
                raise InputError(f"{source}: {'/'.join(parts)}: folder without images; expected png or jpg")
    return sorted(found)


def _label(source: Source, parts: list[str]) -> int:
    label = SPELLINGS.get(parts[1].lower())
    if label is None:
        raise InputError(
            f"{source}: {parts[0]}/{parts[1]}: unknown class folder; expected one of {', '.join(SPELLINGS)}"
        )
    return label


def read(source: Source) -> Rows:
    """Reads every image, in the order of the sorted paths, also where an archive keeps another."""
    entries = class_images(source)
    prefix = f"{source.member}/" if source.member else ""
    position = {prefix + path: index for index, (path, _, _) in enumerate(entries)}
    images = np.empty((len(entries), SIDE, SIDE), np.uint8)
    look = {"desc": f"reading {source.container.name}", "unit": " images"}
    with tqdm(total=len(entries), delay=1, leave=False, **look) as bar:
        for name, size, stream in containers.members(source.container, list(position)):
            where = f"{source.container}: {name}"
            if size > _LARGEST_IMAGE:
                raise InputError(f"{where}: {size} bytes; expected a {SIDE}x{SIDE} image of a few kB")
            images[position[name]] = decode_image(where, stream.read(size))
            bar.update()
    labels = np.array([label for _, label, _ in entries], np.uint8)
    return Rows(images, labels, np.array([usage for _, _, usage in entries], np.uint8), kind="folders")


def decode_image(where: str, data: bytes) -> NDArray[np.uint8]:
    """Decodes the bytes of a grey 48x48 png or jpg; channels that are all equal count as grey.

    Args:
      where: what an error calls the image.

    Returns:
      uint8 [48, 48].

    Raises:
      InputError: it is no whole png or jpg, has another size, or is not grey.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            mode, (width, height) = image.mode, image.size
            right = (width, height) == (SIDE, SIDE)
            pixels = np.asarray(image if mode == "L" else image.convert("RGBA")) if right else None
    except Exception as error:  # PIL raises a dozen kinds for damaged files
        raise InputError(f"{where}: unreadable image; expected a whole png or jpg") from error
    if pixels is None:
        raise InputError(f"{where}: {width}x{height} pixels; expected {SIDE}x{SIDE}")
    if mode == "L":
        return pixels
    red, green, blue, alpha = np.moveaxis(pixels, -1, 0)
    grey = (red == green).all() and (red == blue).all() and alpha.min() == 255
    if mode not in ("1", "P", "LA", "RGB", "RGBA") or not grey:
        raise InputError(f"{where}: not 8-bit grey (mode {mode}); expected grey, or channels that are equal")
    return red
