"""Where the faces of a photograph are, and how they are cut out."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_jax.errors import InputError
from fer_jax.files import is_utf8

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what is wrong is told by our errors

import cv2

# Of OpenCV's cascades for frontal faces this one found none in photographs without, where the default one did
# (coins, gravel), and as many of FER2013's.
CASCADE = "haarcascade_frontalface_alt2.xml"
_LAST_STAGE = 53.755569  # the threshold of its last stage
_LONGEST = 1024  # pixels: larger photographs are shrunk, for time grows with the area
_SMALLEST_FACE = 28  # pixels, there
_NEIGHBOURS = 5  # windows that agree on a face, at least
_TINY = 256  # pixels: smaller photographs are enlarged, and get a border, for faces that fill them
_OVERLAP = 0.4  # of the smaller box, from which on two are the same face

_YUNET_LONGEST = 1280
_YUNET_SCORE, _YUNET_OVERLAP, _YUNET_CANDIDATES = 0.6, 0.3, 5000


class Detection(NamedTuple):
    """A face: its box in pixels of the array it was found in, and a confidence of 0 to 1."""

    x: int
    y: int
    w: int
    h: int
    confidence: float


Detector = Callable[[NDArray[np.uint8]], list[Detection]]
"""From uint8 [H, W] or RGB [H, W, 3] to the faces, the largest first."""


def make(name: str) -> Detector:
    """A detector.

    Args:
      name: "opencv", the Haar cascade that comes with OpenCV; "none", for which the whole image is one face,
        of confidence 0; or the path of a YuNet model, .onnx.

    Raises:
      InputError: no such detector, or not a model that OpenCV runs.
    """
    if name == "none":
        return whole
    if name == "opencv":
        return _haar()
    if not name.endswith(".onnx"):
        raise InputError(f"detector: unknown {name!r}, expected opencv, none or a YuNet model such as x.onnx")
    if not is_utf8(name):  # OpenCV crashes on it
        raise InputError(f"detector: {name}: expected a path in UTF-8")
    if not Path(name).is_file():
        raise InputError(f"detector: no such file {name}")
    return _yunet(name)


def check_margin(margin: float, name: str) -> None:
    """Raises InputError for a margin that `crop` should not make: 1 makes nine times the box's pixels."""
    if not 0 <= margin <= 1:
        raise InputError(f"{name}: expected 0 to 1, of the box, got {margin}")


def crop(pixels: NDArray[np.uint8], face: Detection, margin: float) -> NDArray[np.uint8]:
    """Cuts out a square around a box.

    Args:
      pixels: uint8 [H, W] or [H, W, 3].
      margin: to be added on every side, as a fraction of the box's longer one.

    Returns:
      uint8 [S, S] or [S, S, 3]; beyond the border of the photograph its last pixel is repeated.
    """
    side = max(1, round(max(face.w, face.h) * (1 + 2 * margin)))
    top, left = round(face.y + (face.h - side) / 2), round(face.x + (face.w - side) / 2)
    rows = np.clip(np.arange(top, top + side), 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, pixels.shape[1] - 1)
    return pixels[rows[:, None], columns]


def whole(pixels: NDArray[np.uint8]) -> list[Detection]:
    """The detector "none"."""
    height, width = pixels.shape[:2]
    return [Detection(0, 0, width, height, 0.0)]


def _haar() -> Detector:
    """Viola and Jones's detector (2001), as OpenCV has it.

    What a window passes the last stage by is its confidence c, as 1 - exp(-c): of FER2013's faces half have
    0.93 and more, one in a hundred 0.65 and less. It orders faces, and is no probability.
    """
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / CASCADE))

    def detect(pixels: NDArray[np.uint8]) -> list[Detection]:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
        longest = max(grey.shape)
        factor = _TINY / longest if longest < _TINY else min(1.0, _LONGEST / longest)
        grey, border = _at_scale(grey, factor), _TINY // 4 if longest < _TINY else 0
        grey = cv2.copyMakeBorder(grey, *(border,) * 4, cv2.BORDER_REPLICATE)
        boxes, _, weights = cascade.detectMultiScale3(
            grey,
            scaleFactor=1.1,
            minNeighbors=_NEIGHBOURS,
            minSize=(_SMALLEST_FACE,) * 2,
            outputRejectLevels=True,
        )
        confidences = 1 - np.exp(-np.maximum(0, np.ravel(weights) - _LAST_STAGE))
        return _in_photo(np.reshape(boxes, (-1, 4)) - (border, border, 0, 0), confidences, factor, pixels)

    return detect


def _yunet(path: str) -> Detector:
    """YuNet (Wu, Peng and Yu, 2023), run by OpenCV; the confidence is its score."""
    try:
        network: Any = cv2.FaceDetectorYN.create(
            path, "", (320, 320), _YUNET_SCORE, _YUNET_OVERLAP, _YUNET_CANDIDATES
        )
        network.detect(np.zeros((320, 320, 3), np.uint8))
    except cv2.error as error:
        raise InputError(f"detector: {path}: not a YuNet model that OpenCV runs") from error

    def detect(pixels: NDArray[np.uint8]) -> list[Detection]:
        code = cv2.COLOR_RGB2BGR if pixels.ndim == 3 else cv2.COLOR_GRAY2BGR
        factor = min(1.0, _YUNET_LONGEST / max(pixels.shape))
        image = _at_scale(cv2.cvtColor(pixels, code), factor)
        network.setInputSize(image.shape[1::-1])
        found = network.detect(image)[1]
        rows = np.empty((0, 15)) if found is None else found  # x, y, w, h, five landmarks, score
        return _in_photo(rows[:, :4], rows[:, -1], factor, pixels)

    return detect


def _at_scale(pixels: Any, factor: float) -> Any:
    if factor == 1:
        return pixels
    size = [max(1, round(side * factor)) for side in pixels.shape[1::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def _in_photo(
    boxes: np.ndarray, confidences: np.ndarray, factor: float, pixels: np.ndarray
) -> list[Detection]:
    """Boxes [N, 4] of x, y, w, h found at a scale, as detections inside the photograph, each face once."""
    ends = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) / factor
    x0, y0, x1, y1 = np.clip(np.rint(ends), 0, [*pixels.shape[1::-1]] * 2).astype(int).T.tolist() or [[]] * 4
    numbers = zip(x0, y0, x1, y1, np.clip(confidences, 0, 1).tolist(), strict=True)
    found = [Detection(a, b, c - a, d - b, confidence) for a, b, c, d, confidence in numbers]
    kept: list[Detection] = []
    for face in sorted(found, key=lambda face: -face.confidence):
        if face.w and face.h and all(_shared(face, other) < _OVERLAP for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: (-face.w * face.h, face.x, face.y))


def _shared(a: Detection, b: Detection) -> float:
    """The part of the smaller box that lies in the other."""
    width = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    height = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    return max(0, width) * max(0, height) / min(a.w * a.h, b.w * b.h)
