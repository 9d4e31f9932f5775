"""FER+'s labels for the faces of FER2013: ten votes a face, published as fer2013new.csv in its row order.

Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label
Distribution", 2016; github.com/microsoft/FERPlus has the file and its terms.
"""

import csv
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_jax.data.dataset import CLASS_NAMES, USAGE_NAMES
from fer_jax.errors import InputError

COLUMNS = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF"
)  # fmt: skip
# FER2013's names of FER+'s emotions; contempt, unknown and NF (not a face) are no class of FER2013.
_CLASSES = {
    "neutral": "neutral", "happiness": "happy", "surprise": "surprise", "sadness": "sad", "anger": "angry",
    "disgust": "disgust", "fear": "fear",
}  # fmt: skip


def majority_labels(path: str | Path, usage: NDArray[np.uint8]) -> tuple[NDArray[np.int32], str, str]:
    """The label with the most votes of each face, as a class of FER2013.

    Args:
      path: fer2013new.csv.
      usage: uint8 [N], of the faces in row order; it has to agree with the file's.

    Returns:
      labels, int32 [N], -1 for a face without one: a tie, or contempt, unknown or no face has the most
      votes; a note that says how many; the file's sha256.

    Raises:
      InputError: the file cannot be read, or is not for these rows.
    """
    try:
        content = Path(path).read_bytes()
        lines = list(csv.reader(content.decode().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.labels: {path}: cannot be read ({error})") from error
    if not lines or tuple(lines[0][2:]) != COLUMNS:
        raise InputError(f"data.labels: {path}: expected FER+'s fer2013new.csv, with the columns {COLUMNS}")
    rows = [line for line in lines[1:] if line]
    # The names in the second column follow no one rule that could be checked.
    if [row[0] for row in rows] != [USAGE_NAMES[use] for use in usage]:
        raise InputError(f"data.labels: {path}: its {len(rows)} rows are not those of the {len(usage)} faces")
    if any(len(row) != 2 + len(COLUMNS) for row in rows):
        raise InputError(f"data.labels: {path}: expected {len(COLUMNS)} votes in every row")
    try:
        votes = np.array([row[2:] for row in rows], np.int64)
    except (ValueError, OverflowError) as error:
        raise InputError(f"data.labels: {path}: votes are no whole numbers ({error})") from error
    classes = np.array([CLASS_NAMES.index(_CLASSES[name]) if name in _CLASSES else -1 for name in COLUMNS])
    most = votes.max(1)
    alone = (votes == most[:, None]).sum(1) == 1
    labels = np.where(alone, classes[votes.argmax(1)], -1).astype(np.int32)
    left_out = np.count_nonzero(labels < 0)
    why = "ties, contempt, unknown, no face"
    note = f"FER+ majority labels: {left_out:,} faces without one ({why}) are left out"
    return labels, note, hashlib.sha256(content).hexdigest()
