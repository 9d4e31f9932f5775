"""Directories, zip files and gzipped tar files, all read as a list of names and a stream of members.

Nothing is ever extracted to disk, and a name that would leave its archive is an error.
"""

import contextlib
import functools
import gzip
import lzma
import os
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from fer_jax import cache
from fer_jax.errors import InputError

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz")
_ZIP_UTF8 = 0x800  # the flag of a name in UTF-8
_FILE, _FOLDER, _LINK = "f", "d", "l"
_KINDS = dict.fromkeys(tarfile.REGULAR_TYPES, _FILE) | {
    tarfile.DIRTYPE: _FOLDER,
    tarfile.SYMTYPE: _LINK,
    tarfile.LNKTYPE: _LINK,
}


@dataclass(frozen=True)
class Listing:
    """What a container holds: names relative to it, "/" between their parts, hidden ones left out.

    Attributes:
      files: every regular file, sorted.
      folders: every folder, also the empty ones, sorted.
      links: of a tar, which are not followed there, sorted.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    links: tuple[str, ...] = ()


def is_archive(path: Path) -> bool:
    """Whether the name says zip or gzipped tar."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a missing, damaged, truncated or encrypted file raises into an `InputError`."""
    try:
        yield
    except (
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        tarfile.TarError,
        UnicodeDecodeError,  # of a zip member's name
    ) as error:
        raise InputError(f"{path}: truncated or damaged archive ({error})") from error
    except (RuntimeError, NotImplementedError) as error:  # what zipfile raises for an encrypted member
        raise InputError(f"{path}: cannot be read ({error})") from error
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def listing(container: Path) -> Listing:
    """Lists a directory or an archive; the first time a gzipped tar is read, and so checked, to its end.

    Raises:
      InputError: it cannot be read, is truncated, or holds a name that leaves the archive.
    """
    if container.is_dir():
        return _list_directory(container)
    with reading(container):
        status = container.stat()
    return _list_archive(container, status.st_size, status.st_mtime_ns)


def members(container: Path, wanted: Collection[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yields (name, size in bytes, open binary stream) for every wanted file name of the listing.

    Use each stream before taking the next. The order is that of `wanted`, but of a tar its own. Consume
    it under `reading(container)`: damage shows while a stream is read.
    """
    if container.is_dir():
        for name in wanted:
            with open(container / name, "rb", opener=_without_waiting) as file:
                yield name, os.fstat(file.fileno()).st_size, file
    elif _is_zip(container):
        with zipfile.ZipFile(container) as zipped:
            infos = {_checked(container, _zip_name(info)): info for info in zipped.infolist()}
            for name in wanted:
                with zipped.open(infos[name]) as unpacked:
                    yield name, infos[name].file_size, unpacked
    else:
        remaining = set(wanted)
        with gzip.open(container) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
            for member in archive:
                name = _checked(container, member.name)
                if name in remaining and member.isfile():
                    remaining.remove(name)
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield name, member.size, stream
                if not remaining:
                    return


def _without_waiting(path: str, flags: int) -> int:
    """An opener to which a named pipe is an empty file; without it, opening one waits for who writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def _list_directory(directory: Path) -> Listing:
    files, folders = [], []
    above: dict[str, frozenset[str]] = {}  # of a folder to come, where it and those above it really are
    for where, subfolders, names in os.walk(directory, onerror=_refuse, followlinks=True):
        # Links are followed, since data sets are often linked into place, but not into what they lie in.
        real = above.pop(where, frozenset()) | {os.path.realpath(where)}
        paths = {name: os.path.join(where, name) for name in subfolders if not _hidden(name)}
        subfolders[:] = [name for name, path in paths.items() if os.path.realpath(path) not in real]
        above |= {paths[name]: real for name in subfolders}
        prefix = "" if where == os.fspath(directory) else f"{os.path.relpath(where, directory)}/"
        folders += [prefix + name for name in subfolders]
        files += [prefix + name for name in names if not _hidden(name)]
    return Listing(tuple(sorted(files)), tuple(sorted(folders)))


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error


@functools.lru_cache(maxsize=32)
def _list_archive(container: Path, size: int, mtime_ns: int) -> Listing:
    """The listing of an archive; its size and time are arguments so that a changed file is read anew."""
    entries_of = _zip_entries if _is_zip(container) else _tar_entries
    with reading(container):
        entries = dict(entries_of(container))
    named: dict[str, set[str]] = {_FILE: set(), _FOLDER: set(), _LINK: set()}
    for name, kind in entries.items():
        if not _hidden(name):
            named[kind].add(name)
    files, folders, links = named.values()
    for name in files:
        while name := posixpath.dirname(name):
            folders.add(name)
    return Listing(tuple(sorted(files)), tuple(sorted(folders - {"."})), tuple(sorted(links)))


def _zip_entries(container: Path) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(container) as archive:
        for info in archive.infolist():
            yield _checked(container, _zip_name(info)), _FOLDER if info.is_dir() else _FILE


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The member's name. Many tools write UTF-8 without saying so, which Python reads as code page 437."""
    if not info.flag_bits & _ZIP_UTF8:
        with contextlib.suppress(UnicodeError):
            return info.filename.encode("cp437").decode("utf-8")
    return info.filename


def _tar_entries(container: Path) -> Iterator[tuple[str, str]]:
    """What a gzipped tar holds, remembered: to list FER2013's takes seconds."""

    def compute() -> dict[str, np.ndarray]:
        names = "\0".join(kind + name for name, kind in _read_tar_entries(container))
        return {"entries": np.frombuffer(os.fsencode(names), np.uint8)}

    kept = cache.remembered_of("tar_listings", [container], ["entries"], compute)
    names = os.fsdecode(kept["entries"].tobytes()).split("\0")
    yield from ((name[1:], name[0]) for name in names if name)


def _read_tar_entries(container: Path) -> Iterator[tuple[str, str]]:
    size = container.stat().st_size
    look = {"desc": f"listing {container.name}", "delay": 1, "leave": False}
    with open(container, "rb") as raw, tqdm.wrapattr(raw, "read", total=size, **look) as counted:
        unzipped = gzip.open(counted)  # noqa: SIM115
        with unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
            for member in archive:
                name = _checked(container, member.name)
                if kind := _KINDS.get(member.type):
                    yield name, kind
            while unzipped.read(1 << 20):  # to the end, where gzip keeps its checksum
                pass


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _checked(container: Path, name: str) -> str:
    """The normalised name of an archive's member, which has to stay inside the archive."""
    plain = name.replace("\\", "/")
    if not plain:
        raise InputError(f"{container}: truncated or damaged archive (a member has no name)")
    if plain.startswith("/") or re.match("[A-Za-z]:", plain) or ".." in plain.split("/"):
        raise InputError(f"{container}: member {name!r} leaves the archive; only paths inside it are read")
    return posixpath.normpath(plain)


def _hidden(name: str) -> bool:
    """Whether any part of the name is hidden, or the resource forks that macOS adds to archives."""
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))
