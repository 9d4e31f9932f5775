"""Finds the faces under a path: FER2013 in whichever form it has there, or class folders of one's own."""

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fer_jax.data import containers, photos
from fer_jax.errors import InputError

FOLDER_USAGE = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "test": 2, "testing": 2}
"""The usage (Training, PublicTest, PrivateTest) of the images below these folders; in any case."""

PRECEDENCE = (
    "fer2013.csv, icml_face_data.csv, train/ with validation/ or test/ and class folders in each, "
    "a .zip, .tar.gz or .tgz of one of these, or class folders with images, two at least, or a .zip or "
    ".tar.gz of such"
)
"""What a directory is searched for, at any depth: the first that is there, the shallowest, the first in
alphabetical order. An archive is searched in the same way, but not for archives inside it."""

_CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")


@dataclass(frozen=True)
class Source:
    """One source of faces.

    Attributes:
      container: the csv file, the directory that holds the folders, or an archive.
      member: in an archive, the csv or the folder that holds the folders; else "".
      form: "csv"; "parts": train/, validation/, test/ (see `FOLDER_USAGE`), in each class folders;
        "classes": class folders.
    """

    container: Path
    member: str
    form: str

    def __str__(self) -> str:
        return f"{self.container}:{self.member}" if self.member else str(self.container)


def name_of(path: str | os.PathLike[str]) -> str:
    """The last part of a path, for people; bytes of it that are not UTF-8 are escaped."""
    return os.fsencode(os.path.basename(os.path.abspath(path))).decode(errors="backslashreplace")


def find(path: Path, own: bool = True) -> Source | None:
    """The source at or under a path, by the precedence above; None if there is none.

    Args:
      own: also where there are class folders alone, which FER2013 never is.

    Raises:
      InputError: the path does not exist, is a file of another kind, or an archive that cannot be read.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or directory; expected faces as {PRECEDENCE}")
    if path.is_dir() or containers.is_archive(path):
        return _search(path, _csv_or_parts) or (_search(path, _classes) if own else None)
    if path.suffix.lower() == ".csv":
        return Source(path, "", "csv")
    raise InputError(f"{path}: expected a directory or a .csv, .zip, .tar.gz or .tgz file")


def is_image(name: str) -> bool:
    """Whether the name says that the file is an image."""
    return name.lower().endswith(photos.SUFFIXES)


_Finder = Callable[[containers.Listing], tuple[str, str] | None]


def _search(container: Path, finder: _Finder) -> Source | None:
    """The first source in a directory or archive, or in a directory's archives.

    Args:
      finder: (path in the container, form) of what a listing holds.
    """
    listing = containers.listing(container)
    if found := finder(listing):
        name, form = found
        return Source(container / name, "", form) if container.is_dir() else Source(container, name, form)
    if container.is_dir():
        for name in _by_depth(listing):
            if containers.is_archive(Path(name)) and (source := _search(container / name, finder)):
                return source
    return None


def _by_depth(listing: containers.Listing) -> list[str]:
    return sorted(listing.files, key=lambda name: (name.count("/"), name))


def _csv_or_parts(listing: containers.Listing) -> tuple[str, str] | None:
    by_depth = _by_depth(listing)
    for wanted in _CSV_NAMES:
        for name in by_depth:
            if posixpath.basename(name).lower() == wanted:
                return name, "csv"
    below: dict[str, set[int]] = {}
    for folder in _image_folders(listing):
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            if part.lower() in FOLDER_USAGE:
                below.setdefault("/".join(parts[:depth]), set()).add(FOLDER_USAGE[part.lower()])
    roots = [root for root, usages in below.items() if 0 in usages and len(usages) > 1]
    roots.sort(key=lambda root: (root.count("/") if root else -1, root))
    return (roots[0], "parts") if roots else None


def _classes(listing: containers.Listing) -> tuple[str, str] | None:
    """The folder that all images have in common, where they lie in at least two of its own folders."""
    folders = _image_folders(listing)
    root = posixpath.commonpath(folders) if folders else ""
    prefix = f"{root}/" if root else ""
    classes = {folder.removeprefix(prefix).split("/")[0] for folder in folders if folder not in (root, "")}
    return (root, "classes") if len(classes) > 1 else None


def _image_folders(listing: containers.Listing) -> set[str]:
    """The folders that hold images themselves; "" is the container."""
    return {posixpath.dirname(name) for name in listing.files if is_image(name)}
