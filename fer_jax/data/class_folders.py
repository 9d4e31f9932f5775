"""Reads class folders: FER2013's train/ and test/, in each a folder an emotion, and folders of one's own.

The folders are FER2013's where train/ and test/ hold all seven emotions and nothing else and every image is
grey and 48x48; all others are one's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fer_jax.data import containers, photos
from fer_jax.data.dataset import CLASS_NAMES, SIDE, Rows
from fer_jax.data.sources import FOLDER_USAGE, Source, is_image
from fer_jax.errors import InputError
from fer_jax.files import is_utf8

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
"""FER2013's label by the name of a class folder, in lower case."""

# What is larger is not read into memory to find out what it is.
_LARGEST_FILE = 1 << 28
_MOST_CLASSES = 256  # labels are kept as uint8
_TOLD = 3  # files that an error names


@dataclass(frozen=True)
class ClassImages:
    """The images of class folders, in the order of their sorted paths.

    Attributes:
      paths: below the folder that holds the classes, or train/ and the like.
      labels: uint8 [N], an index into `class_names`.
      usage: uint8 [N], see `FaceDataset.usage`; 0 where there is no train/.
      class_names: FER2013's, in its order, those that are there, where every folder is called so; else the
        folders' names, sorted.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.uint8]
    usage: NDArray[np.uint8]
    class_names: tuple[str, ...]


def named_as_fer2013(class_names: Sequence[str], usage: NDArray[np.uint8]) -> bool:
    """Whether folders are train/ and test/ with the seven emotions."""
    return tuple(class_names) == CLASS_NAMES and set(usage.tolist()) == {0, 2}


def class_images(source: Source) -> ClassImages:
    """What the folders of a source hold; no image is read.

    Folders in a class folder belong to it. Beside train/, validation/ and test/ nothing counts.

    Raises:
      InputError: a class folder holds no image, an image lies in none, there are too few or many classes, or
        links in a tar.
    """
    prefix = f"{source.member}/" if source.member else ""
    above = 1 if source.form == "parts" else 0  # folders above a class folder

    def below(names: Sequence[str]) -> list[list[str]]:
        inside = [name.removeprefix(prefix).split("/") for name in names if name.startswith(prefix)]
        return [parts for parts in inside if not above or parts[0].lower() in FOLDER_USAGE]

    listing = containers.listing(source.container)
    for parts in below(listing.links):
        how = "make the archive by `tar -h --hard-dereference`"
        raise InputError(f"{source}: {'/'.join(parts)}: expected files, found a link; {how}")
    images = sorted(below([name for name in listing.files if is_image(name)]), key="/".join)
    for parts in images:
        if len(parts) < above + 2:
            where = "/".join([*parts[:above], "CLASS"])
            raise InputError(f"{source}: {'/'.join(parts)}: expected images only in {where}/")
    filled = {tuple(parts[: above + 1]) for parts in images}
    for parts in below(listing.folders):
        if len(parts) == above + 1 and tuple(parts) not in filled:
            raise InputError(f"{source}: {'/'.join(parts)}: folder without images; expected png or jpg")
    names = [parts[above] for parts in images]
    if not above and all(name.lower() in FOLDER_USAGE for name in names):
        found = ", ".join(sorted(set(names)))
        raise InputError(f"{source}: {found}: parts of a data set, not classes; expected train/ and test/")
    by_name, class_names = _classes(source, names)
    usage = [FOLDER_USAGE[parts[0].lower()] if above else 0 for parts in images]
    return ClassImages(
        paths=tuple("/".join(parts) for parts in images),
        labels=np.array([by_name[name] for name in names], np.uint8),
        usage=np.array(usage, np.uint8),
        class_names=class_names,
    )


def _classes(source: Source, names: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of every folder's name, and the classes in label order."""
    found = sorted(set(names))
    for name in found:
        if not is_utf8(name):
            raise InputError(f"{source}: class folder {name!r}: expected a name in UTF-8")
    if any(name.lower() not in SPELLINGS for name in found):
        classes = tuple(found)
        by_name = {name: label for label, name in enumerate(classes)}
    else:
        labels = sorted({SPELLINGS[name.lower()] for name in found})
        classes = tuple(CLASS_NAMES[label] for label in labels)
        by_name = {name: labels.index(SPELLINGS[name.lower()]) for name in found}
    if not 2 <= len(classes) <= _MOST_CLASSES:
        raise InputError(f"{source}: {len(classes)} classes of images; expected 2 to {_MOST_CLASSES}")
    return by_name, classes


def read(source: Source, sides: tuple[int, int]) -> Rows:
    """Reads every image, in the order of the sorted paths, also where an archive keeps another.

    Images of one's own become squares (`photos.squared`), all grey, or all RGB where any has a colour.

    Args:
      sides: of the squares in pixels: where no image is wider or higher than `SIDE`, and else.

    Raises:
      InputError: images cannot be read; it names them. Or as `class_images`.
    """
    listed = class_images(source)
    faces, larger = _decoded(source, listed.paths, sides[1])
    fitting = not larger and all(face.shape == (SIDE, SIDE) for face in faces)
    fer2013 = fitting and named_as_fer2013(listed.class_names, listed.usage)
    side = SIDE if fer2013 else sides[larger]
    colour = any(face.ndim == 3 for face in faces)
    images = np.empty((len(faces), side, side, 3) if colour else (len(faces), side, side), np.uint8)
    for index, face in enumerate(faces):
        square = photos.squared(face, side)
        images[index] = square[..., None] if colour and square.ndim == 2 else square
    kind = "folders" if fer2013 else "own"
    return Rows(images, listed.labels, listed.usage, kind, listed.class_names)


def _decoded(source: Source, paths: Sequence[str], side: int) -> tuple[list[NDArray[np.uint8]], bool]:
    """The images, larger ones than `SIDE` as squares of `side` pixels, and whether there are such."""
    prefix = f"{source.member}/" if source.member else ""
    position = {prefix + path: index for index, path in enumerate(paths)}
    faces: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(paths)
    broken, larger = {}, False
    look = {"desc": f"reading {source.container.name}", "unit": " images"}
    with tqdm(total=len(paths), delay=1, leave=False, **look) as bar:
        for name, size, stream in containers.members(source.container, list(position)):
            bar.update()
            where = f"{source.container}: {name}"
            try:
                if size > _LARGEST_FILE:
                    raise InputError(f"{where}: {size} bytes; expected an image of at most {_LARGEST_FILE}")
                # Four times the side: what a JPEG decodes anyway in a fraction of the time.
                photo = photos.decode(stream.read(size), where, largest=max(4 * side, SIDE))
            except InputError as error:
                broken[name] = str(error)
                continue
            small = max(photo.width, photo.height) <= SIDE
            faces[position[name]] = photo.pixels if small else photos.squared(photo.pixels, side)
            larger |= not small
    if broken:
        raise InputError(_told(source, broken, len(paths)))
    return faces, larger


def _told(source: Source, broken: dict[str, str], count: int) -> str:
    """The images that cannot be read, in a line."""
    first = broken[min(broken)]
    if len(broken) == 1:
        return first
    names = ", ".join(sorted(broken)[:_TOLD]) + (", ..." if len(broken) > _TOLD else "")
    return f"{source.container}: {len(broken)} of {count} images cannot be read: {names}; the first: {first}"
