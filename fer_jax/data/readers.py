"""Reads a source into arrays; here, the csv: fer2013.csv and icml_face_data.csv.

A header names the columns emotion, pixels and Usage, in any order; a row is a label 0 to 6, 2304 numbers 0
to 255, and a usage.
"""

import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
from tqdm import tqdm

from fer_jax.data import class_folders, containers
from fer_jax.data.dataset import SIDE, USAGE_NAMES, Rows
from fer_jax.data.sources import Source
from fer_jax.errors import InputError

_COLUMNS = ("emotion", "pixels", "usage")
_LABELS = {str(label): label for label in range(7)}
_USAGES = {name.lower(): usage for usage, name in enumerate(USAGE_NAMES)}
# A row of the published csv has at most 9,229 characters: what is far longer is no row, and is not read into
# memory to find out what it is.
_LONGEST_LINE = 1 << 16


def read(source: Source, sides: tuple[int, int]) -> Rows:
    """Reads a source whole: 83 MB for FER2013, in the row order of the csv or of the sorted paths.

    Args:
      sides: of images of one's own, see `class_folders.read`.

    Raises:
      InputError: something in it is not as it has to be; the line names file and row.
    """
    with containers.reading(source.container):
        if source.form != "csv":
            return class_folders.read(source, sides)
        if source.member:
            for _, size, stream in containers.members(source.container, [source.member]):
                rows = _read_csv(source, stream, size)
            return rows
        with open(source.container, "rb") as stream:
            return _read_csv(source, stream, source.container.stat().st_size)


def _read_csv(source: Source, stream: IO[bytes], size: int) -> Rows:
    """Reads one line after the other, so that memory holds the faces and one line."""
    header = _line(source, stream, "header")
    if header is None:
        raise InputError(f"{source}: empty file; expected a header with emotion, pixels and Usage")
    header = header.removeprefix("\ufeff").strip()
    names = [name.strip(' "').lower() for name in header.split(",")]
    for column in _COLUMNS:
        if column not in names:
            expected = f"expected emotion, pixels and Usage, found {header[:80]!r}"
            raise InputError(f"{source}: header has no column {column!r}; {expected}")
    images, labels, usages = bytearray(), bytearray(), bytearray()
    look = {"desc": f"reading {source.container.name}", "unit": "B", "unit_scale": True}
    with tqdm(total=size, delay=1, leave=False, **look) as bar:
        for row, line in _rows(source, stream):
            fields = line.split(",")
            if len(fields) != len(names):
                raise InputError(f"{row}: {len(fields)} fields where the header has {len(names)}")
            by_name = dict(zip(names, fields, strict=True))
            labels.append(_value(row, "emotion", by_name["emotion"], _LABELS, "0 to 6"))
            usages.append(_value(row, "Usage", by_name["usage"], _USAGES, ", ".join(USAGE_NAMES)))
            images += _pixels(row, by_name["pixels"].strip(' "'))
            bar.update(len(line))
    if not labels:
        raise InputError(f"{source}: header but no rows; expected a row a face")
    return Rows(
        np.frombuffer(images, np.uint8).reshape(-1, SIDE, SIDE),
        np.frombuffer(labels, np.uint8),
        np.frombuffer(usages, np.uint8),
        kind="csv" if tuple(names) == _COLUMNS else "icml",
    )


def _rows(source: Source, stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Yields (how an error names the row, the line) for every line below the header that is not blank."""
    number = 1
    while (line := _line(source, stream, where := f"row {number} (line {number + 1})")) is not None:
        if line := line.strip():
            yield f"{source}: {where}", line
        number += 1


def _line(source: Source, stream: IO[bytes], where: str) -> str | None:
    """The next line, or None at the end of the file."""
    line = stream.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE:
        raise InputError(f"{source}: {where}: longer than {_LONGEST_LINE} bytes; expected a row of a csv")
    try:
        return line.decode("utf-8") if line else None
    except UnicodeDecodeError:
        raise InputError(f"{source}: {where}: not UTF-8 text; expected a csv in UTF-8") from None


def _value(row: str, column: str, text: str, values: dict[str, int], expected: str) -> int:
    value = values.get(text.strip(' "').lower())
    if value is None:
        raise InputError(f"{row}: {column} is {text.strip()[:40]!r}; expected {expected}")
    return value


def _pixels(row: str, text: str) -> bytes:
    """The 2304 bytes of a face. numpy parses five times faster than Python; Python says what was wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # what numpy < 2.3 answers to a word
            values = np.fromstring(text, dtype=np.int64, sep=" ")
        if values.size == SIDE * SIDE and values.min() >= 0 and values.max() <= 255:
            return values.astype(np.uint8).tobytes()
    except (ValueError, DeprecationWarning):
        pass
    words = text.split()
    if len(words) != SIDE * SIDE:
        raise InputError(f"{row}: {len(words)} pixels; expected {SIDE * SIDE} ({SIDE}x{SIDE})")
    for index, word in enumerate(words):
        if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) <= 255):
            raise InputError(f"{row}: pixel {index + 1} is {word[:40]!r}; expected a number from 0 to 255")
    raise InputError(f"{row}: pixels cannot be read; expected numbers between single spaces")
