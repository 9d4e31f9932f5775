"""An entry of the features' cache on the disk: rows in .npy files, read with a check of each.

A directory of one .npy file for each value that crosses the cut, a row a face, beside a manifest with the
crc32 of every row that has been written.
"""

import dataclasses
import errno
import functools
import io
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fer_jax import cache
from fer_jax.cache import as_bytes
from fer_jax.errors import InputError
from fer_jax.files import replacing

GB = 1e9
MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


def row_sums(values: np.ndarray, rows: Iterable[int]) -> np.ndarray:
    """crc32 of some rows of an array [n, ...], uint32."""
    size, data = math.prod(values.shape[1:]) * values.dtype.itemsize, as_bytes(values)
    return np.array([zlib.crc32(data[row * size : (row + 1) * size]) for row in rows], np.uint32)


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
    """One entry of the cache.

    Attributes:
      batch_size: of the program that computed the rows: another one's may differ in their last bits.
      chunk_rows: rows that are written together.
      done: numbers of the chunks that are there.
      sums: uint32 [arrays, N], `row_sums` of what is there.
    """

    folder: Path
    arrays: list[Array]
    batch_size: int
    chunk_rows: int
    done: set[int]
    sums: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "Entry | None":
        """The entry in `folder`; None where there is none or where its manifest is not as it was written."""
        try:
            checksum, body = (folder / MANIFEST).read_text().split("\n", 1)
            if checksum != f"{zlib.crc32(body.encode()):08x}":
                return None
        except (OSError, ValueError):
            return None
        content = json.loads(body)
        arrays = [Array(tuple(shape), jax.numpy.dtype(dtype)) for shape, dtype in content["arrays"]]
        done, sums = set(content["done"]), np.array(content["sums"], np.uint32)
        return cls(folder, arrays, content["batch_size"], content["chunk_rows"], done, sums)

    @property
    def nbytes(self) -> int:
        return sum(array.file_bytes for array in self.arrays)

    @property
    def manifest_bytes(self) -> int:
        """The most that the manifest takes of the disk: a decimal number and a comma a row, and the manifest
        before it while it is replaced."""
        return 2 * 12 * self.rows * len(self.arrays)

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
        """Writes a chunk's rows of every array; `record` makes them count after a kill.

        Raises:
          InputError: the disk cannot be written.
        """
        with cache.writing(self.folder):
            rows = self.chunk(number)
            for i, (array, block) in enumerate(zip(self.arrays, blocks, strict=True)):
                with self.path(i).open("r+b") as file:
                    file.seek(len(array.header) + rows.start * array.row_bytes)
                    file.write(as_bytes(block))
                self.sums[i, rows.start : rows.stop] = row_sums(block, range(len(rows)))
        self.done.add(number)

    def record(self) -> None:
        """Writes the manifest.

        Raises:
          InputError: the disk cannot be written.
        """
        content = {
            "arrays": [(array.shape, array.dtype.name) for array in self.arrays],
            "batch_size": self.batch_size,
            "chunk_rows": self.chunk_rows,
            "done": sorted(self.done),
            "sums": self.sums.tolist(),
        }
        body = json.dumps(content)
        with cache.writing(self.folder), replacing(self.folder / MANIFEST) as temporary:
            temporary.write_text(f"{zlib.crc32(body.encode()):08x}\n{body}")

    def repair(self, chunks: Sequence[int], fill: Callable[[Sequence[int]], None]) -> None:
        """Has `fill` write chunks again, one process at a time, others' repairs kept."""
        with cache.locked(self.folder.with_suffix(".repair")):
            if found := Entry.read(self.folder):
                self.sums[:] = found.sums
            fill(chunks)


def _complete(path: Path, array: Array) -> None:
    try:
        with path.open("r+b" if path.exists() else "w+b") as file:
            if file.read(len(array.header)) != array.header:
                file.seek(0)
                file.write(array.header)
                file.flush()
            size = os.fstat(file.fileno()).st_size
            # It gets its size with its room: a file of this size needs no more of the disk.
            if size < array.file_bytes and hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, array.file_bytes)
            elif size != array.file_bytes:
                os.truncate(file.fileno(), array.file_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(f"{path}: no room for {array.file_bytes / GB:.3f} GB: {error.strerror}") from error


class StoredArray:
    """One array of a whole entry, left on the disk; `stored[rows]` reads rows as a NumPy array.

    A row is checked when it is first read, so that a start need not read everything. One that is not as it
    was written is computed again, with its chunk; reading raises InputError where that cannot be written.

    Args:
      number: of the array in the entry.
      fill: computes chunks, by number, and writes them into the entry.
    """

    __iter__ = None  # a row at a time would be slow

    def __init__(self, entry: Entry, number: int, fill: Callable[[Sequence[int]], None]) -> None:
        self.shape, self.dtype = entry.arrays[number].shape, entry.arrays[number].dtype
        self._entry, self._number, self._fill = entry, number, fill
        self._map = self._open()
        self._checked = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        values = np.asarray(self._map[rows])
        if len(damaged := self._damaged(values, numbers)):
            self._repair({int(row) // self._entry.chunk_rows for row in damaged})
            values = np.asarray(self._map[rows])
            if len(self._damaged(values, numbers)):
                file = self._entry.path(self._number)
                raise InputError(f"{file}: the disk does not give back what was written to it")
        self._checked[numbers] = True
        return values

    def in_memory(self) -> np.ndarray:
        """All rows; what is damaged is computed again at once."""
        values, damaged = np.empty(self.shape, self.dtype), set()
        for number in tqdm(self._entry.chunks, "reading features", delay=2):
            rows = self._entry.chunk(number)
            block = values[rows.start : rows.stop]
            block[...] = self._map[rows.start : rows.stop]
            if len(self._damaged(block, np.asarray(rows))):
                damaged.add(number)
        if damaged:
            self._repair(damaged)
        for rows in map(self._entry.chunk, damaged):
            values[rows.start : rows.stop] = self[rows.start : rows.stop]
        return values

    def _repair(self, chunks: set[int]) -> None:
        file = self._entry.path(self._number)
        log.warning("features: %d damaged chunks of %s are computed again", len(chunks), file)
        self._entry.repair(sorted(chunks), self._fill)
        self._map = self._open()

    def _open(self) -> np.memmap:
        header = self._entry.arrays[self._number].header
        return np.memmap(self._entry.path(self._number), self.dtype, "r", len(header), self.shape)

    def _damaged(self, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Of the rows `numbers`, read as `values` and not checked before, those that are damaged."""
        new = np.flatnonzero(~self._checked[numbers])
        expected = self._entry.sums[self._number, numbers[new]]
        return numbers[new[row_sums(values, new) != expected]]
