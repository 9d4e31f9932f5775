"""The prepared copy of a source: written once through TFDS as array_record, read by every later run.

A copy lies in CACHE/fer2013/SHA256-vVERSION, one of images of one's own, which depends on the side of the
squares, in SHA256-SIDE-vVERSION there. It is written beside that place under a lock and takes its name by one
rename, so that an interrupted preparation leaves nothing that a later run takes for whole.
"""

import contextlib
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from absl import logging
from tqdm import tqdm

from fer_jax import cache
from fer_jax.cache import locked, writing
from fer_jax.data import class_folders, containers, readers
from fer_jax.data.dataset import CLASS_NAMES, Rows
from fer_jax.data.sources import Source
from fer_jax.errors import InputError
from fer_jax.files import replacing

_VERSION = "1.1.0"  # to be raised when the readers or the record format change what a copy holds
_SPLIT = "faces"
_ARRAYS = "rows.npz"
_BLOCK = 2048  # rows read back at a time


def source_sha256(source: Source) -> str:
    """The sha256 (hex) that `FaceDataset.sha256` documents, of a file or of class folders in a directory.

    That of folders is what `find * -name '*.png' | LC_ALL=C sort | xargs sha256sum | sha256sum` prints in the
    directory that holds them, where the images are png.
    """
    container = source.container
    with containers.reading(container):
        if not container.is_dir():
            return _remembered_sha256([container], lambda: _file_sha256(container))
        paths = class_folders.class_images(source).paths
        files = [container / path for path in paths]
        return _remembered_sha256(files, lambda: _folders_sha256(container, paths))


def _folders_sha256(container: Path, paths: Sequence[str]) -> str:
    total = hashlib.sha256()
    images = containers.members(container, paths)
    for path, _, file in tqdm(images, "hashing", len(paths), unit=" images", delay=1, leave=False):
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(os.fsencode(f"{digest}  {path}\n"))
    return total.hexdigest()


def home(root: Path) -> Path:
    """Where the prepared copies are kept, in the cache's directory `root`."""
    return root / "fer2013"


def find(sha256: str, sides: tuple[int, int], root: Path) -> Path | None:
    """The prepared copy of the source with this sha256; None where there is none.

    Args:
      sides: of images of one's own, see `class_folders.read`.
    """
    places = (home(root) / name for name in (_name(sha256), _name(sha256, sides)))
    return next((place for place in places if place.exists()), None)


def _name(sha256: str, sides: tuple[int, int] | None = None) -> str:
    words = [sha256, "or".join(str(side) for side in dict.fromkeys(sides or ())), f"v{_VERSION}"]
    return "-".join(word for word in words if word)


def prepare(source: Source, sha256: str, sides: tuple[int, int], root: Path) -> Path:
    """Reads a source and writes its prepared copy; does nothing where another process has just done so.

    Raises:
      InputError: the source is not as it has to be, or the cache cannot be written; no copy is left then.
    """
    with locked(home(root) / ".lock"):  # others wait, then find the copy
        if done := find(sha256, sides, root):
            return done
        rows = readers.read(source, sides)
        target = home(root) / _name(sha256, sides if rows.kind == "own" else None)
        unfinished = target.with_name(target.name + ".unfinished")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
            with writing(target.parent):
                try:
                    written = _write(rows, unfinished)
                    _write_arrays(rows, written / _ARRAYS)  # else the first start would read all records back
                except RuntimeError as error:  # of array_record, where the disk is full
                    raise OSError(str(error)) from error
                os.rename(written, target)
            return target
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def read(target: Path) -> Rows:
    """Reads a prepared copy into arrays, in row order.

    Raises:
      InputError: the copy's files were damaged since they were written.
    """
    arrays = target / _ARRAYS
    if rows := _read_arrays(arrays):
        return rows
    try:
        with _quiet():
            rows = _read(target)
    except Exception as error:  # whatever damaged json, protobufs and record files raise
        raise InputError(f"{target}: damaged prepared copy ({error}); delete this directory") from error
    # A cache that has become read-only is no reason to stop.
    with contextlib.suppress(OSError):
        _write_arrays(rows, arrays)
    return rows


def _write_arrays(rows: Rows, path: Path) -> None:
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **vars(rows), sha256=_rows_sha256(rows))


def _read_arrays(path: Path) -> Rows | None:
    """The rows as arrays, which load ten times faster than records; None where they are not as written."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = tuple(map(str, file["class_names"]))
            rows = Rows(file["images"], file["labels"], file["usage"], str(file["kind"]), names)
            return rows if str(file["sha256"]) == _rows_sha256(rows) else None
    except Exception:  # a damaged zip file raises nearly anything
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints about downloads, and shows bars named by long paths; none of this concerns our users."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _write(rows: Rows, root: Path) -> Path:
    """Builds the copy under `root` and returns the directory that holds it."""
    import tensorflow_datasets as tfds

    bar = tqdm(total=len(rows.labels), desc="preparing (once)", unit=" rows", delay=1, leave=False)
    with bar, _quiet(), tfds.core.registered.skip_registration():
        builder = _builder_class()(rows, bar, data_dir=root, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


def _builder_class() -> type:
    """The TFDS builder; a function, so that TFDS is imported only where it is used."""
    import tensorflow_datasets as tfds

    class OfflineInfo(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """TFDS would look for ready information in its online bucket, and leave a temporary folder."""

    class PreparedFaces(tfds.core.GeneratorBasedBuilder):
        """One example a face, in the order of the source."""

        VERSION = tfds.core.Version(_VERSION)
        url_infos: ClassVar[dict] = {}  # nothing is downloaded; TFDS would look for a list beside this file

        def __init__(self, rows: Rows, bar: tqdm, **where: Any) -> None:
            self._rows = rows
            self._bar = bar
            super().__init__(**where)

        def _info(self) -> Any:
            return OfflineInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        # As bytes: the default, a list of int64, takes four times as long to write.
                        "image": tfds.features.Tensor(
                            shape=self._rows.images.shape[1:],
                            dtype=np.uint8,
                            encoding=tfds.features.Encoding.BYTES,
                        ),
                        "label": tfds.features.Tensor(shape=(), dtype=np.uint8),
                        "usage": tfds.features.Tensor(shape=(), dtype=np.uint8),
                    }
                ),
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(
                    kind=self._rows.kind,
                    class_names=list(self._rows.class_names),
                    sha256=_rows_sha256(self._rows),
                ),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {_SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            rows = self._rows
            for index in range(len(rows.labels)):
                image, label, usage = rows.images[index], rows.labels[index], rows.usage[index]
                yield index, {"image": image, "label": label, "usage": usage}
                self._bar.update()

    return PreparedFaces


def _read(target: Path) -> Rows:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(target)
    records = builder.as_data_source(_SPLIT)
    count = len(records)
    metadata = builder.info.metadata
    rows = Rows(
        np.empty((count, *builder.info.features["image"].shape), np.uint8),
        np.empty(count, np.uint8),
        np.empty(count, np.uint8),
        metadata["kind"],
        tuple(metadata.get("class_names", CLASS_NAMES)),  # copies of older revisions are all FER2013's
    )
    with tqdm(total=count, desc="reading the prepared copy", unit=" rows", delay=1, leave=False) as bar:
        for start in range(0, count, _BLOCK):
            block = range(start, min(start + _BLOCK, count))
            for index, record in zip(block, records.__getitems__(list(block)), strict=True):
                rows.images[index], rows.labels[index] = record["image"], record["label"]
                rows.usage[index] = record["usage"]
            bar.update(len(block))
    if _rows_sha256(rows) != metadata["sha256"]:
        raise ValueError("its rows do not have the sha256 that they were written with")
    return rows


def _rows_sha256(rows: Rows) -> str:
    digest = hashlib.sha256()
    for array in (rows.images, rows.labels, rows.usage):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _remembered_sha256(files: Sequence[Path], compute: Callable[[], str]) -> str:
    """The sha256 of files, which took a fifth of every start on FER2013's csv, of its folders more."""
    found = cache.remembered_of("sha256", files, ["sha256"], lambda: {"sha256": np.array(compute())})
    return str(found["sha256"])


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    look = {"desc": f"hashing {path.name}", "delay": 1, "leave": False}
    with open(path, "rb") as raw, tqdm.wrapattr(raw, "read", total=path.stat().st_size, **look) as counted:
        while block := counted.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
