"""Finds FER2013 under a path, whichever of its forms it has there."""

import posixpath
from dataclasses import dataclass
from pathlib import Path

from fer_jax.data import containers
from fer_jax.errors import InputError

PRECEDENCE = (
    "fer2013.csv, icml_face_data.csv, class folders train/ and test/ with png or jpg images, "
    "or a .zip, .tar.gz or .tgz of one of these"
)
"""What a directory is searched for, at any depth: the first that is there, the shallowest, the first in
alphabetical order. An archive is searched in the same way, but not for archives inside it."""

FOLDER_USAGE = {"train": 0, "test": 2}
"""The usage (Training, PrivateTest) of the images below these folders; in any case."""

_CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")


@dataclass(frozen=True)
class Source:
    """One source of faces.

    Attributes:
      container: the csv file, the directory that holds train/ and test/, or an archive.
      member: in an archive, the csv or the folder that holds train/ and test/; else "".
      folders: whether it consists of class folders, not of a csv.
    """

    container: Path
    member: str
    folders: bool

    def __str__(self) -> str:
        return f"{self.container}:{self.member}" if self.member else str(self.container)


def find(path: Path) -> Source | None:
    """The source at or under a path, by the precedence above; None if there is none.

    Raises:
      InputError: the path does not exist, is a file of another kind, or an archive that cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; expected FER2013 as {PRECEDENCE}")
    if path.is_dir() or containers.is_archive(path):
        return _search(path)
    if path.suffix.lower() == ".csv":
        return Source(path, "", folders=False)
    raise InputError(f"{path}: expected a directory or a .csv, .zip, .tar.gz or .tgz file")


def is_image(name: str) -> bool:
    """Whether the name says png or jpg."""
    return name.lower().endswith((".png", ".jpg", ".jpeg"))


def _search(container: Path) -> Source | None:
    """The first source in a directory or archive, by the precedence above."""
    listing = containers.listing(container)
    by_depth = sorted(listing.files, key=lambda name: (name.count("/"), name))
    for wanted in _CSV_NAMES:
        for name in by_depth:
            if posixpath.basename(name).lower() == wanted:
                return _source(container, name, folders=False)
    if roots := _class_folder_roots(listing):
        return _source(container, roots[0], folders=True)
    if container.is_dir():
        for name in by_depth:
            if containers.is_archive(Path(name)) and (source := _search(container / name)):
                return source
    return None


def _source(container: Path, name: str, folders: bool) -> Source:
    return Source(container / name, "", folders) if container.is_dir() else Source(container, name, folders)


def _class_folder_roots(listing: containers.Listing) -> list[str]:
    """Folders that hold both train/ and test/ with images somewhere below them, shallowest first."""
    below: dict[str, set[str]] = {}
    for folder in {posixpath.dirname(name) for name in listing.files if is_image(name)}:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            if part.lower() in FOLDER_USAGE:
                below.setdefault("/".join(parts[:depth]), set()).add(part.lower())
    whole = [root for root, halves in below.items() if len(halves) == 2]
    return sorted(whole, key=lambda root: (root.count("/") if root else -1, root))
