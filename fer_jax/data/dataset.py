"""The one form in which faces and their labels travel through the project."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
      images: uint8 [N, 48, 48], grey.
      labels: int32 [N], an index into `class_names`; -1 for a face that no split uses.
      usage: uint8 [N], an index into `USAGE_NAMES` (class folders: 0 for train/, 2 for test/); None for
        faces that were drawn.
      class_names: the emotions, in label order.
      kind: "csv" (fer2013.csv), "icml" (icml_face_data.csv), "folders" (train/ and test/) or "drawn".
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
    def labelled(self) -> NDArray[np.int64]:
        """The rows with a label, in order."""
        return np.flatnonzero(self.labels >= 0)


@dataclass(frozen=True, eq=False)
class Rows:
    """What a reader returns: images uint8 [N, 48, 48], labels and usage uint8 [N], and the `kind`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    usage: NDArray[np.uint8]
    kind: str
