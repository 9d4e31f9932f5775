"""What crosses the cut, computed once an image and kept on disk for every later run.

An entry of the cache is a directory of .npy files, one for each value that crosses, a row a face, beside a
manifest with a checksum for every chunk of rows. It is filled under the name `NAME.partial` and renamed
when it is whole: a killed extraction goes on where it stopped, and nothing short is ever read. Whoever
fills or uses an entry holds `NAME.lock`, whose modification time says when the entry was last used.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import shutil
import time
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fer_jax import cache
from fer_jax.cut import Cut
from fer_jax.errors import InputError
from fer_jax.files import replacing

# Rows between two records of progress, what a killed extraction loses at most; ResNet-50 at 224: 128 MB.
CHUNK_ROWS = 256
GB = 1e9

log = logging.getLogger(__name__)

Upstream = Callable[[Any], Sequence[jax.Array]]


def make_key(
    cut: Cut, params: Any, batch_stats: Any, faces: np.ndarray, preprocessing: str
) -> dict[str, str]:
    """All that features depend on: the weights read upstream, the faces, the cut, versions.

    Args:
      faces: uint8 [N, height, width] or [N, height, width, 3], the whole data set in row order, whatever
        the split.
      preprocessing: size, scaling and dtype in words. (The cut's fingerprint holds them too.)
    """
    weights = hashlib.blake2b(digest_size=32)
    for path, leaf in cut.upstream_variables(params, batch_stats).items():
        weights.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        weights.update(_bytes(leaf))
    data = hashlib.blake2b(f"{faces.dtype} {faces.shape}".encode(), digest_size=32)
    data.update(_bytes(faces))
    return {
        "weights": weights.hexdigest(),
        "data": data.hexdigest(),
        "preprocessing": preprocessing,
        "cut": cut.fingerprint,
        "platform": jax.default_backend(),
        "versions": f"jax {jax.__version__}, format 1",
    }


def compute(
    upstream: Upstream,
    faces: np.ndarray,
    key: dict[str, str],
    *,
    batch_size: int,
    max_gb: float,
    cache_dir: Path | None = None,
    memory_gb: float = 1.0,
    reserve: int = 0,
) -> list[np.ndarray]:
    """The features of all faces, from the cache or computed into it.

    Args:
      upstream: maps uint8 [batch_size, *faces.shape[1:]] to arrays [batch_size, ...], each row made of its
        own face alone: `functools.partial(jax.jit(cut.upstream), params, batch_stats)`.
      faces: uint8 [N, height, width] or [N, height, width, 3].
      key: what the features depend on, see `make_key`.
      max_gb: bound on the cache in 1e9 bytes. The least recently used entries go first, those in use never.
      cache_dir: the entries are in its subdirectory `features`; None for `cache.cache_dir()`.
      memory_gb: features of up to this size in all are read into memory.
      reserve: bytes of further features that the run will compute, for which there has to be room too.

    Returns:
      An array [N, ...] for each value that crosses: in memory, or a read-only memory map.

    Raises:
      InputError: the features fit neither `max_gb` nor the disk; nothing has been computed then. Or the
        cache cannot be written.
    """
    home = (cache_dir or cache.cache_dir()) / "features"
    name = _name(key)
    whole, partial = home / name, home / f"{name}.partial"
    with cache.writing(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = _lock(home, name)
    try:
        with cache.writing(home):
            os.utime(lock)
        entry = (
            _read_manifest(whole) or _read_manifest(partial) or _plan(partial, upstream, faces, batch_size)
        )
        if entry.folder == partial:
            shutil.rmtree(whole, ignore_errors=True)  # its manifest cannot be read
        _make_room(home, name, entry.nbytes, max_gb, reserve)
        missing = entry.missing_chunks()
        if missing:
            _fill(entry, missing, upstream, faces, batch_size)
        if entry.folder == partial:
            with cache.writing(home):
                partial.rename(whole)
        fcntl.flock(lock, fcntl.LOCK_SH)
        return dataclasses.replace(entry, folder=whole).load(lock, memory_gb)
    finally:
        os.close(lock)


def is_kept(key: dict[str, str]) -> bool:
    """Whether the features of this key are in the cache, whole."""
    return _read_manifest(cache.cache_dir() / "features" / _name(key)) is not None


def _name(key: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class _Array:
    """Shape [N, ...] and dtype of one value that crosses, and its place in a .npy file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
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
class _Entry:
    """One entry of the cache; `sums` holds, for every chunk that is done, the crc32 of each array's rows."""

    folder: Path
    arrays: list[_Array]
    chunk_rows: int
    sums: dict[int, list[int]]

    @property
    def nbytes(self) -> int:
        return sum(array.file_bytes for array in self.arrays)

    @property
    def rows(self) -> int:
        return self.arrays[0].shape[0]

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.npy"

    def chunk(self, number: int) -> range:
        """The rows of a chunk."""
        return range(number * self.chunk_rows, min((number + 1) * self.chunk_rows, self.rows))

    def missing_chunks(self) -> list[int]:
        """Numbers of the chunks that are not there, or not as they were written; makes files complete."""
        for number, array in enumerate(self.arrays):
            _allocate(self.path(number), array)
        maps = [np.memmap(self.path(i), np.uint8, "r", len(a.header)) for i, a in enumerate(self.arrays)]
        missing = []
        progress = tqdm(range(math.ceil(self.rows / self.chunk_rows)), "checking features", delay=2)
        for number in progress:
            rows = self.chunk(number)
            spans = [slice(rows.start * a.row_bytes, rows.stop * a.row_bytes) for a in self.arrays]
            recorded = self.sums.get(number)
            if recorded is None or recorded != [
                zlib.crc32(_bytes(m[s])) for m, s in zip(maps, spans, strict=True)
            ]:
                missing.append(number)
        damaged = [number for number in missing if number in self.sums]
        if damaged:
            log.warning("features: %d damaged chunks in %s are computed again", len(damaged), self.folder)
        return missing

    def write(self, number: int, blocks: Sequence[np.ndarray]) -> None:
        """Writes a chunk's rows of every array, then records that they are there."""
        with cache.writing(self.folder):
            for i, (array, block) in enumerate(zip(self.arrays, blocks, strict=True)):
                with self.path(i).open("r+b") as file:
                    file.seek(len(array.header) + self.chunk(number).start * array.row_bytes)
                    file.write(_bytes(block))
            self.sums[number] = [zlib.crc32(_bytes(block)) for block in blocks]
            _write_manifest(self)

    def load(self, lock: int, memory_gb: float) -> list[np.ndarray]:
        """The arrays, in memory or mapped; a map keeps the entry locked for as long as it lives."""
        maps: list[np.ndarray] = [
            np.memmap(self.path(i), array.dtype, "r", len(array.header), array.shape)
            for i, array in enumerate(self.arrays)
        ]
        if self.nbytes <= memory_gb * GB:
            return [np.array(m) for m in maps]
        for m in maps:
            weakref.finalize(m, os.close, os.dup(lock))
        return maps


def _bytes(array: Any) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _plan(folder: Path, upstream: Upstream, faces: np.ndarray, batch_size: int) -> _Entry:
    batch = jax.ShapeDtypeStruct((batch_size, *faces.shape[1:]), faces.dtype)
    shapes = jax.eval_shape(upstream, batch)
    arrays = [_Array((len(faces), *s.shape[1:]), np.dtype(s.dtype)) for s in shapes]
    return _Entry(folder, arrays, batch_size * max(1, CHUNK_ROWS // batch_size), {})


def _fill(
    entry: _Entry, missing: Sequence[int], upstream: Upstream, faces: np.ndarray, batch_size: int
) -> None:
    def batch_of(rows: range) -> np.ndarray:
        batch = np.zeros((batch_size, *faces.shape[1:]), faces.dtype)
        batch[: len(rows)] = faces[rows.start : rows.stop]
        return batch

    def features_of(batch: np.ndarray) -> Sequence[jax.Array]:
        return upstream(jax.device_put(batch))

    first = batch_of(entry.chunk(missing[0])[:batch_size])
    jax.block_until_ready(features_of(first))  # compiles
    start = time.perf_counter()
    jax.block_until_ready(features_of(first))
    rate = batch_size / (time.perf_counter() - start)
    to_do = sum(len(entry.chunk(number)) for number in missing)
    log.info(
        "features: %s of each of %d faces, %.3f GB in %s; %d faces to do at %.1f images/s: about %.0f s",
        " + ".join(f"{'x'.join(map(str, array.shape[1:] or (1,)))} {array.dtype}" for array in entry.arrays),
        entry.rows,
        entry.nbytes / GB,
        entry.folder.parent,
        to_do,
        rate,
        to_do / rate,
    )
    start = time.perf_counter()
    with tqdm(total=entry.rows, initial=entry.rows - to_do, desc="features", unit="img") as progress:
        for number in missing:
            rows = entry.chunk(number)
            batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
            # All are dispatched before the first is fetched, so the device does not wait for the disk.
            results = [features_of(batch_of(batch)) for batch in batches]
            blocks = [np.empty((len(rows), *array.shape[1:]), array.dtype) for array in entry.arrays]
            for batch, result in zip(batches, results, strict=True):
                at = slice(batch.start - rows.start, batch.stop - rows.start)
                for block, values in zip(blocks, jax.device_get(result), strict=True):
                    block[at] = values[: len(batch)]
                progress.update(len(batch))
            entry.write(number, blocks)
    seconds = time.perf_counter() - start
    log.info("features: %d faces in %.1f s, %.1f images/s", to_do, seconds, to_do / seconds)


def _allocate(path: Path, array: _Array) -> None:
    """Gives a file its header and its full size, on the disk too, leaving rows that are there as they are."""
    with cache.writing(path):
        path.parent.mkdir(exist_ok=True)
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


def _read_manifest(folder: Path) -> _Entry | None:
    """The entry in `folder`; None where there is none or where its manifest is not as it was written."""
    try:
        checksum, body = (folder / "manifest.json").read_text().split("\n", 1)
        if checksum != f"{zlib.crc32(body.encode()):08x}":
            return None
    except (OSError, ValueError):
        return None
    content = json.loads(body)
    arrays = [_Array(tuple(shape), jax.numpy.dtype(dtype)) for shape, dtype in content["arrays"]]
    sums = {int(number): values for number, values in content["sums"].items()}
    return _Entry(folder, arrays, content["chunk_rows"], sums)


def _write_manifest(entry: _Entry) -> None:
    arrays = [(array.shape, array.dtype.name) for array in entry.arrays]
    body = json.dumps({"arrays": arrays, "chunk_rows": entry.chunk_rows, "sums": entry.sums})
    with replacing(entry.folder / "manifest.json") as temporary:
        temporary.write_text(f"{zlib.crc32(body.encode()):08x}\n{body}")


def _lock(home: Path, name: str) -> int:
    """Locks an entry: shared where it is whole, else alone; returns the descriptor that holds the lock."""
    lock = os.open(home / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    waiting = False
    while True:
        whole = _read_manifest(home / name) is not None
        if _try_lock(lock, fcntl.LOCK_SH if whole else fcntl.LOCK_EX):
            if whole == (_read_manifest(home / name) is not None):
                return lock
            fcntl.flock(lock, fcntl.LOCK_UN)
        elif not waiting:
            log.info("features: waiting for the process that computes them, or clears their place")
            waiting = True
        time.sleep(0.1)


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_room(home: Path, name: str, nbytes: int, max_gb: float, reserve: int) -> None:
    """Removes the entries used longest ago until `nbytes` for the entry `name`, and `reserve`, fit the bound
    and the disk."""
    to_write = nbytes - _size(home, name) + reserve
    nbytes += reserve
    names = [path.stem for path in sorted(home.glob("*.lock"), key=lambda path: path.stat().st_mtime)]
    others = {other: _size(home, other) for other in names if other != name}
    total, free = nbytes + sum(others.values()), shutil.disk_usage(home).free

    def fits() -> bool:
        return total <= max_gb * GB and to_write <= free

    leaving = []
    with contextlib.ExitStack() as locks:
        for other, size in others.items():
            if fits():
                break
            with cache.writing(home):
                lock = os.open(home / f"{other}.lock", os.O_RDWR)
            locks.callback(os.close, lock)
            if size and _try_lock(lock, fcntl.LOCK_EX):
                leaving.append(other)
                total, free = total - size, free + size
        if to_write > 0 and not fits():
            raise InputError(_no_room(home, nbytes, to_write, total - nbytes, free, max_gb))
        for other in leaving:
            log.info("features: %s makes room, %.3f GB", home / other, others[other] / GB)
            shutil.rmtree(home / other, ignore_errors=True)
            shutil.rmtree(home / f"{other}.partial", ignore_errors=True)


def _no_room(home: Path, nbytes: int, to_write: int, in_use: int, free: int, max_gb: float) -> str:
    if to_write > free:
        return f"{home}: the features need {to_write / GB:.3f} GB of disk, {free / GB:.3f} GB can be had"
    used = f", and other runs use {in_use / GB:.3f} GB" if in_use else ""
    return f"features.max_gb: expected at least {nbytes / GB:.3f} for these features{used}, got {max_gb}"


def _size(home: Path, name: str) -> int:
    """Bytes of an entry's arrays, whole and partial."""
    folders = (home / name, home / f"{name}.partial")
    return sum(path.stat().st_size for folder in folders for path in folder.glob("*.npy"))
