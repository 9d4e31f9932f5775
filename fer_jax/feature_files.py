"""An entry of the features' cache on the disk: rows in .npy files, read with a check of each.

A directory of one .npy file for each value that crosses the cut, a row a face, beside a manifest with the
crc32 of every row that has been written.
"""

import dataclasses
import functools
import io
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fer_jax import cache
from fer_jax.errors import InputError
from fer_jax.files import replacing

GB = 1e9

log = logging.getLogger(__name__)


def as_bytes(array: Any) -> memoryview:
    """The bytes of an array's elements in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def row_sums(rows: np.ndarray) -> list[int]:
    """crc32 of each row of an array [n, ...]."""
    size = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    data = as_bytes(rows)
    return [zlib.crc32(data[start : start + size]) for start in range(0, len(data), size)]


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape [N, ...] and dtype of one value that crosses, and its place in a .npy file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @functools.cached_property
    def header(self) -> bytes:
        # numpy's format has no bfloat16; its bits are kept as an integer's.
        plain = self.dtype if self.dtype.kind in "biuf" else np.dtype(f"u{self.dtype.itemsize}")
        buffer = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(plain)
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": descr, "fortran_order": False, "shape": self.shape}
        )
        return buffer.getvalue()

    @property
    def file_bytes(self) -> int:
        return len(self.header) + self.shape[0] * self.row_bytes


@dataclasses.dataclass
class Entry:
    """One entry of the cache; `sums` holds, for every chunk that is done, `row_sums` of each array."""

    folder: Path
    arrays: list[Array]
    chunk_rows: int
    sums: dict[int, list[list[int]]]

    @classmethod
    def read(cls, folder: Path) -> "Entry | None":
        """The entry in `folder`; None where there is none or where its manifest is not as it was written."""
        try:
            checksum, body = (folder / "manifest.json").read_text().split("\n", 1)
            if checksum != f"{zlib.crc32(body.encode()):08x}":
                return None
        except (OSError, ValueError):
            return None
        content = json.loads(body)
        arrays = [Array(tuple(shape), jax.numpy.dtype(dtype)) for shape, dtype in content["arrays"]]
        sums = {int(number): values for number, values in content["sums"].items()}
        return cls(folder, arrays, content["chunk_rows"], sums)

    @property
    def nbytes(self) -> int:
        return sum(array.file_bytes for array in self.arrays)

    @property
    def rows(self) -> int:
        return self.arrays[0].shape[0]

    @property
    def chunks(self) -> range:
        """Numbers of all chunks."""
        return range(math.ceil(self.rows / self.chunk_rows))

    def chunk(self, number: int) -> range:
        """The rows of a chunk."""
        return range(number * self.chunk_rows, min((number + 1) * self.chunk_rows, self.rows))

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.npy"

    def complete_files(self) -> None:
        """Gives every file its header and its size, on the disk too, leaving rows that are there.

        Raises:
          InputError: the disk has no room for them, or cannot be written.
        """
        with cache.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        for number, array in enumerate(self.arrays):
            _complete(self.path(number), array)

    def write(self, number: int, blocks: Sequence[np.ndarray]) -> None:
        """Writes a chunk's rows of every array, then records that they are there."""
        with cache.writing(self.folder):
            for i, (array, block) in enumerate(zip(self.arrays, blocks, strict=True)):
                with self.path(i).open("r+b") as file:
                    file.seek(len(array.header) + self.chunk(number).start * array.row_bytes)
                    file.write(as_bytes(block))
            self.sums[number] = [row_sums(block) for block in blocks]
            self._write_manifest()

    def _write_manifest(self) -> None:
        arrays = [(array.shape, array.dtype.name) for array in self.arrays]
        body = json.dumps({"arrays": arrays, "chunk_rows": self.chunk_rows, "sums": self.sums})
        with replacing(self.folder / "manifest.json") as temporary:
            temporary.write_text(f"{zlib.crc32(body.encode()):08x}\n{body}")


def _complete(path: Path, array: Array) -> None:
    try:
        with path.open("r+b" if path.exists() else "w+b") as file:
            if file.read(len(array.header)) != array.header:
                file.seek(0)
                file.write(array.header)
                file.flush()
            if os.fstat(file.fileno()).st_size != array.file_bytes:
                os.truncate(file.fileno(), array.file_bytes)
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, array.file_bytes)
    except OSError as error:
        raise InputError(f"{path}: no room for {array.file_bytes / GB:.3f} GB: {error.strerror}") from error


class StoredArray:
    """One array of a whole entry, left on the disk; `stored[rows]` reads rows as a NumPy array.

    A row is checked when it is first read. One that is not as it was written is computed again, with its
    chunk, so that a start need not read everything.

    Args:
      number: of the array in the entry.
      repair: computes chunks, by number, and writes them into the entry.
    """

    def __init__(self, entry: Entry, number: int, repair: Callable[[Sequence[int]], None]) -> None:
        array = entry.arrays[number]
        self.shape, self.dtype = array.shape, array.dtype
        self._map = np.memmap(entry.path(number), array.dtype, "r", len(array.header), array.shape)
        self._entry, self._number, self._repair = entry, number, repair
        self._sums = np.concatenate([entry.sums[chunk][number] for chunk in entry.chunks])
        self._checked = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        values = np.array(self._map[rows])
        new = np.flatnonzero(~self._checked[numbers])
        damaged = numbers[new[np.asarray(row_sums(values[new])) != self._sums[numbers[new]]]]
        if len(damaged):
            chunks = sorted({int(row) // self._entry.chunk_rows for row in damaged})
            log.warning(
                "features: %d damaged chunks of %s are computed again", len(chunks), self._map.filename
            )
            self._repair(chunks)
            self._sums = np.concatenate([self._entry.sums[c][self._number] for c in self._entry.chunks])
            values = np.array(self._map[rows])
        self._checked[numbers] = True
        return values

    def in_memory(self) -> np.ndarray:
        """All rows."""
        values = np.empty(self.shape, self.dtype)
        for number in tqdm(self._entry.chunks, "reading features", delay=2):
            rows = self._entry.chunk(number)
            values[rows.start : rows.stop] = self[rows.start : rows.stop]
        return values
