"""The one form in which faces and their labels travel through the project."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fer_jax.data import sources

SIDE = 48
"""Height and width of a FER2013 face, in pixels."""

CLASS_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""FER2013's emotions in the order of its labels, 0 to 6."""

USAGE_NAMES = ("Training", "PublicTest", "PrivateTest")
"""FER2013's Usage column, in the order of `FaceDataset.usage`."""


@dataclass(frozen=True, eq=False)
class FaceDataset:
    """Faces with their labels, in the row order of their source.

    Attributes:
      images: uint8 [N, side, side], grey, or [N, side, side, 3], RGB.
      labels: int32 [N], an index into `class_names`; -1 for a face that no split uses.
      usage: uint8 [N], an index into `USAGE_NAMES` (folders: 0 for train/, 1 for validation/, 2 for test/);
        None for faces that were drawn, and for class folders that lie in no such folder.
      class_names: the emotions, in label order.
      kind: "csv" (fer2013.csv), "icml" (icml_face_data.csv), "folders" (FER2013's train/ and test/), "own"
        (any other class folders) or "drawn".
      source: where the faces come from, for people to read.
      sha256: of the source file's bytes (an archive's: of the archive). Of class folders in a directory:
        of what `sha256sum` prints for their images in the order of the sorted paths. Where labels come from
        a file of their own, its sha256 follows after a space.
      notes: what a reader of any result from this data has to be told.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    usage: NDArray[np.uint8] | None
    class_names: tuple[str, ...]
    kind: str
    source: str
    sha256: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Height and width of every image, in pixels."""
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        """1 of grey images, 3 of RGB."""
        return self.images.shape[3] if self.images.ndim == 4 else 1

    @property
    def name(self) -> str:
        """The last part of the source's path."""
        return sources.name_of(self.source)

    @property
    def labelled(self) -> NDArray[np.int64]:
        """The rows with a label, in order."""
        return np.flatnonzero(self.labels >= 0)


@dataclass(frozen=True, eq=False)
class Rows:
    """What a reader returns: images, labels uint8 [N], usage, kind and class names as `FaceDataset` has them.

    `usage` is 0 throughout where the images lie in no folder train/, validation/ or test/.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    usage: NDArray[np.uint8]
    kind: str
    class_names: tuple[str, ...] = CLASS_NAMES
