"""The data set and split that a run's configuration names."""

import dataclasses
import hashlib
import logging
from typing import Any

import numpy as np

from fer_jax.data import faces, fer2013, ferplus, splits
from fer_jax.data.dataset import CLASS_NAMES, SIDE, FaceDataset
from fer_jax.errors import InputError

log = logging.getLogger(__name__)

DRAWN = "drawn"


def load(config: Any, image_size: int) -> tuple[FaceDataset, splits.Split, dict[str, Any] | None]:
    """Reads or draws the faces and splits them.

    Args:
      config: `config.data`; an empty `path` means $FER2013, then ./data, then the drawn faces, "drawn"
        the drawn faces at once.
      image_size: of the backbone in pixels, for images of one's own whose `side` is 0.

    Returns:
      faces, split, and what deduplication dropped (None where it is off).

    Raises:
      InputError: the source or the split cannot be used.
    """
    splits.check(config.split, config.split_seed, config.fractions)
    fer2013.check_side(config.side)
    path = None if config.path == DRAWN else fer2013.locate(config.path)
    if path:
        dataset = fer2013.load(path, side=config.side, image_size=image_size)
    elif config.side not in (0, SIDE):
        raise InputError(f"data.side: drawn faces have {SIDE} pixels, expected 0, got {config.side}")
    else:
        dataset = _draw(config.drawn_faces)
    dataset = _relabelled(dataset, config.labels)
    dataset = _limited(dataset, config.limit)
    split = splits.make_split(dataset, config.split, config.split_seed, config.fractions)
    dropped = None
    if config.deduplicate:
        split, dropped = splits.deduplicate(dataset, split)
        log.info("deduplicated:\n%s", splits.format_dropped(dropped))
    for note in (*dataset.notes, *split.notes):
        log.warning("NOTE: %s", note)
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in split.parts.items())
    log.info("data: %s; split %s: %s", dataset.source, split.name, sizes)
    if dataset.kind == "own" and dataset.usage is not None and config.split != "official":
        log.info("data: train/ and test/ are mixed in this split; --config.data.split=official keeps them")
    return dataset, split, dropped


def _relabelled(dataset: FaceDataset, path: str) -> FaceDataset:
    """With the majority labels of FER+'s file at `path`; as it is for an empty one."""
    if not path:
        return dataset
    if dataset.kind not in ("csv", "icml"):
        raise InputError(f"data.labels: {dataset.source}: FER+'s labels go with the rows of FER2013's csv")
    assert dataset.usage is not None
    labels, note, sha256 = ferplus.majority_labels(path, dataset.usage)
    return dataclasses.replace(
        dataset, labels=labels, sha256=f"{dataset.sha256} {sha256}", notes=(*dataset.notes, note)
    )


def _limited(dataset: FaceDataset, limit: int) -> FaceDataset:
    """Of `limit` faces, evenly spread over the rows; 0 for all."""
    if limit < 0:
        raise InputError(f"data.limit: expected 0 (all) or a number of faces, got {limit}")
    if not 0 < limit < len(dataset):
        return dataset
    rows = np.arange(limit) * len(dataset) // limit
    return dataclasses.replace(
        dataset,
        images=dataset.images[rows],
        labels=dataset.labels[rows],
        usage=None if dataset.usage is None else dataset.usage[rows],
        notes=(
            *dataset.notes,
            f"LIMITED to {limit:,} of {len(dataset):,} faces, evenly spread over the rows",
        ),
    )


def _draw(count: int) -> FaceDataset:
    if count < 1:
        raise InputError(f"data.drawn_faces: expected at least 1, got {count}")
    images, labels = faces.draw(count)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
    note = "the faces are DRAWN by this program, not photographs: the figures say nothing about FER2013"
    return FaceDataset(images, labels, None, CLASS_NAMES, "drawn", f"{count:,} drawn faces", digest, (note,))
