"""Which faces are copies of each other, carry several labels, are blank, or stand in two splits."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fer_jax.data.dataset import FaceDataset


def image_ids(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Numbers the distinct images of uint8 [N, ...] by first appearance: equal pixels, equal id.

    Returns:
      int64 [N]; ids run from 0 to the number of distinct images less one.
    """
    seen: dict[bytes, int] = {}  # by digest: pictures of one's own would fill the memory again
    digests = (hashlib.blake2b(image.tobytes()).digest() for image in images)
    return np.array([seen.setdefault(digest, len(seen)) for digest in digests], np.int64)


def blank_rows(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of uint8 [N, H, W] or [N, H, W, 3] have all pixels equal; bool [N]."""
    equal = images.min(axis=(1, 2)) == images.max(axis=(1, 2))
    return equal.reshape(len(images), -1).all(1)


def conflicting_rows(ids: NDArray[np.int64], labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which rows show an image that carries more than one label anywhere in the data; bool [N].

    A row without a label (-1) says nothing about its image.
    """
    pairs = np.unique(np.stack([ids, labels])[:, labels >= 0], axis=1)
    labels_of_image = np.bincount(pairs[0], minlength=ids.max(initial=0) + 1)
    return labels_of_image[ids] > 1


@dataclass(frozen=True)
class Duplicates:
    """What is known to be wrong with a data set, counted.

    Attributes:
      rows, unique_images: all rows, and how many distinct images they show.
      copies: rows beyond the first of each image (rows - unique_images).
      conflicting_images, conflicting_rows: images with more than one label, and the rows that show them.
      blank_images, blank_rows: distinct images whose pixels are all equal, and the rows that show them.
    """

    rows: int
    unique_images: int
    copies: int
    conflicting_images: int
    conflicting_rows: int
    blank_images: int
    blank_rows: int


def summary(dataset: FaceDataset) -> Duplicates:
    """Counts copies, images with more than one label and blank images over the whole data set."""
    ids = image_ids(dataset.images)
    unique = len(np.unique(ids))
    conflicting = conflicting_rows(ids, dataset.labels)
    blank = blank_rows(dataset.images)
    return Duplicates(
        rows=len(ids),
        unique_images=unique,
        copies=len(ids) - unique,
        conflicting_images=len(np.unique(ids[conflicting])),
        conflicting_rows=int(conflicting.sum()),
        blank_images=len(np.unique(ids[blank])),
        blank_rows=int(blank.sum()),
    )


def leaks(ids: NDArray[np.int64], parts: Mapping[str, NDArray[np.int64]]) -> dict[tuple[str, str], int]:
    """How many distinct images stand in two parts of a split.

    Args:
      ids: `image_ids` of the data set.
      parts: row indices by part name, in the order train, validation, test.

    Returns:
      the count for each pair (train, validation), (train, test), (validation, test).
    """
    names = list(parts)
    return {
        (first, second): len(np.intersect1d(ids[parts[first]], ids[parts[second]]))
        for position, first in enumerate(names)
        for second in names[position + 1 :]
    }
