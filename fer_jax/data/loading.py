"""The data set and split that a run's configuration names."""

import hashlib
import logging
from typing import Any

from fer_jax.data import faces, fer2013, splits
from fer_jax.data.dataset import CLASS_NAMES, FaceDataset
from fer_jax.errors import InputError

log = logging.getLogger(__name__)

DRAWN = "drawn"


def load(config: Any) -> tuple[FaceDataset, splits.Split, dict[str, Any] | None]:
    """Reads or draws the faces and splits them.

    Args:
      config: `config.data`; an empty `path` means $FER2013, then ./data, then the drawn faces, "drawn"
        the drawn faces at once.

    Returns:
      faces, split, and what deduplication dropped (None where it is off).

    Raises:
      InputError: the source or the split cannot be used.
    """
    path = None if config.path == DRAWN else fer2013.locate(config.path)
    dataset = fer2013.load(path) if path else _draw(config.drawn_faces)
    split = splits.make_split(dataset, config.split, config.split_seed)
    dropped = None
    if config.deduplicate:
        split, dropped = splits.deduplicate(dataset, split)
        log.info("deduplicated:\n%s", splits.format_dropped(dropped))
    for note in (*dataset.notes, *split.notes):
        log.warning("NOTE: %s", note)
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in split.parts.items())
    log.info("data: %s; split %s: %s", dataset.source, split.name, sizes)
    return dataset, split, dropped


def _draw(count: int) -> FaceDataset:
    if count < 1:
        raise InputError(f"data.drawn_faces: expected at least 1, got {count}")
    images, labels = faces.draw(count)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
    note = "the faces are DRAWN by this program, not photographs: the figures say nothing about FER2013"
    return FaceDataset(images, labels, None, CLASS_NAMES, "drawn", f"{count:,} drawn faces", digest, (note,))
