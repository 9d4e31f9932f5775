"""What crosses the cut, computed once an image and kept on disk for every later run.

An entry of the cache (feature_files.py) is filled under the name `NAME.partial` and renamed when it is
whole: a killed extraction goes on where it stopped, and nothing short is ever read. Whoever fills or uses
an entry holds `NAME.lock`, whose modification time says when the entry was last used.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fer_jax import cache
from fer_jax.cut import Cut
from fer_jax.errors import InputError
from fer_jax.feature_files import GB, MANIFEST, Array, Entry, StoredArray

# Rows that are computed and written together; ResNet-50 at 224: 128 MB.
CHUNK_ROWS = 256
RECORD_SECONDS = 1.0  # between two records, however short chunks take
log = logging.getLogger(__name__)

Upstream = Callable[[Any], Sequence[jax.Array]]


def make_key(cut: Cut, params: Any, batch_stats: Any, faces: str, preprocessing: str) -> dict[str, str]:
    """All that features depend on: the weights read upstream, the faces, the cut, versions.

    Args:
      faces: hash of the whole data set in row order, whatever the split.
      preprocessing: size, scaling and dtype in words. (The cut's fingerprint holds them too.)
    """
    return {
        "weights": cache.arrays_hash(cut.upstream_variables(params, batch_stats)),
        "data": faces,
        "preprocessing": preprocessing,
        "cut": cut.fingerprint,
        "platform": jax.default_backend(),
        "versions": f"jax {jax.__version__}, format 2",
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
    beside: Sequence[dict[str, str]] = (),
) -> Sequence[np.ndarray | StoredArray]:
    """The features of all faces, from the cache or computed into it.

    Args:
      upstream: maps uint8 [batch_size, *faces.shape[1:]] to arrays [batch_size, ...], each row made of its
        own face alone: `functools.partial(compilation.jit(cut.upstream), params, batch_stats)`.
      faces: uint8 [N, height, width] or [N, height, width, 3].
      key: what the features depend on, see `make_key`.
      max_gb: bound on the cache in 1e9 bytes. The least recently used entries go first, those in use never.
      cache_dir: the entries are in its subdirectory `features`; None for `cache.cache_dir()`.
      memory_gb: features of up to this size in all are read into memory.
      beside: keys of features of the same shapes that the run needs too: what is there of them stays, and
        for the rest there has to be room.

    Returns:
      An array [N, ...] for each value that crosses: in memory, or left on the disk and locked while it lives.

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
        entry = Entry.read(whole) or Entry.read(partial) or _plan(partial, upstream, faces, batch_size)
        if entry.folder == partial:
            _clear(whole)
        with cache.locked(home / ".room"):  # until the files have their size, nobody else counts the disk
            _make_room(home, [name, *map(_name, beside)], entry, max_gb)
            entry.complete_files()
        fill = functools.partial(_fill, entry, upstream, faces)
        fill([number for number in entry.chunks if number not in entry.done])
        with cache.writing(home):
            os.utime(lock)
            if entry.folder == partial:
                entry.folder = partial.rename(whole)
        stored = [StoredArray(entry, number, fill) for number in range(len(entry.arrays))]
        fcntl.flock(lock, fcntl.LOCK_SH)
        if entry.nbytes <= memory_gb * GB:
            return [array.in_memory() for array in stored]
        for array in stored:
            weakref.finalize(array, os.close, os.dup(lock))
        return stored
    finally:
        os.close(lock)


def _name(key: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _clear(folder: Path) -> None:
    """Removes an entry whose manifest cannot be read, before anything is computed in its stead."""
    with cache.writing(folder), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _plan(folder: Path, upstream: Upstream, faces: np.ndarray, batch_size: int) -> Entry:
    for size in (batch_size + 1, batch_size):  # two sizes: an axis may be as long as one of them by chance
        batch = jax.ShapeDtypeStruct((size, *faces.shape[1:]), faces.dtype)
        shapes = jax.eval_shape(upstream, batch)
        if not all(s.shape[:1] == (size,) for s in shapes):
            raise ValueError(f"features of {size} faces are {shapes}: an axis that is not the batch leads")
    arrays = [Array((len(faces), *s.shape[1:]), np.dtype(s.dtype)) for s in shapes]
    chunk_rows = batch_size * max(1, CHUNK_ROWS // batch_size)
    sums = np.zeros((len(arrays), len(faces)), np.uint32)
    return Entry(folder, arrays, batch_size, chunk_rows, set(), sums)


def _fill(entry: Entry, upstream: Upstream, faces: np.ndarray, missing: Sequence[int]) -> None:
    """Computes the chunks whose numbers are `missing`, and writes them into the entry."""
    if not missing:
        return
    batch_size, recorded = entry.batch_size, -math.inf

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
            if time.perf_counter() > recorded + RECORD_SECONDS or number == missing[-1]:
                entry.record()
                recorded = time.perf_counter()
    seconds = time.perf_counter() - start
    log.info("features: %d faces in %.1f s, %.1f images/s", to_do, seconds, to_do / seconds)


def _lock(home: Path, name: str) -> int:
    """Locks an entry: shared where it is whole, else alone; returns the descriptor that holds the lock."""
    lock = os.open(home / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    waiting = False
    while True:
        whole = Entry.read(home / name) is not None
        if _try_lock(lock, fcntl.LOCK_SH if whole else fcntl.LOCK_EX):
            if whole == (Entry.read(home / name) is not None):
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


def _make_room(home: Path, mine: Sequence[str], entry: Entry, max_gb: float) -> None:
    """Removes the entries used longest ago until those named `mine`, each as large as `entry`, fit the bound
    and the disk."""
    nbytes = entry.nbytes * len(mine)
    to_write = nbytes - sum(_size(home, name) for name in mine)
    if to_write > 0:
        to_write += entry.manifest_bytes * len(mine)
    names = [path.stem for path in sorted(home.glob("*.lock"), key=lambda path: path.stat().st_mtime)]
    others = {other: _size(home, other) for other in names if other not in mine}
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
        if not fits() and (to_write > 0 or nbytes > max_gb * GB):  # else others are above it, in use
            raise InputError(_no_room(home, nbytes, to_write, total - nbytes, free, max_gb))
        for other in leaving:
            log.info("features: %s makes room, %.3f GB", home / other, others[other] / GB)
            for folder in (home / other, home / f"{other}.partial"):
                with contextlib.suppress(OSError):
                    (folder / MANIFEST).unlink()  # first: a kill now leaves no entry without its arrays
                shutil.rmtree(folder, ignore_errors=True)


def _no_room(home: Path, nbytes: int, to_write: int, in_use: int, free: int, max_gb: float) -> str:
    without = "features.reuse=False needs none, and computes the frozen part in every step"
    if to_write > free:
        found = f"the features need {to_write / GB:.3f} GB of disk, {free / GB:.3f} GB can be had"
        return f"{home}: {found}; {without}"
    used = f", and other runs use {in_use / GB:.3f} GB" if in_use else ""
    wanted = f"expected at least {nbytes / GB:.3f} for these features{used}, got {max_gb}"
    return f"features.max_gb: {wanted}; {without}"


def _size(home: Path, name: str) -> int:
    """Bytes of an entry's arrays, whole and partial."""
    total = 0
    for folder in (home / name, home / f"{name}.partial"):
        for path in folder.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another process renames or removes it
                total += path.stat().st_size
    return total
