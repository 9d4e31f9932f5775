"""Frames of videos and webcams, and annotated videos."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_jax.errors import InputError
from fer_jax.files import replacing

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what is wrong is told by our errors
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
    ".wmv", ".asf", ".ogv", ".flv",
)  # fmt: skip
"""What the names of videos end with, in any case."""

_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # of mp4, mov, 3gp


_EXACT_FPS = 65  # above, OpenCV finds no time base of MPEG-4 for a number that is not whole


class Frame(NamedTuple):
    """RGB uint8 [H, W, 3], and its seconds from the start of the video."""

    pixels: NDArray[np.uint8]
    seconds: float


def frames(path: str, fps: float) -> Iterator[Frame]:
    """The frames of a video, the first and then at most `fps` a second.

    Raises:
      InputError: no video that OpenCV decodes; or, after the frames that there are, it breaks off.
    """
    if not os.path.isfile(path):
        what = "not a regular file" if os.path.exists(path) else "no such file"
        raise InputError(f"{path}: {what}; expected a video")
    capture = _open(path)
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    told, count = capture.get(cv2.CAP_PROP_FRAME_COUNT), 0
    last, before = 0.0, 0.0  # seconds by the file; what came before its clock went back

    def clock() -> float:
        """Seconds of the frame that was grabbed last, from the file, or else counted. Where files were joined
        the clock goes back."""
        nonlocal count, last, before
        count += 1
        seconds = max(0.0, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        if seconds < last - 1 / rate:
            before += last + 1 / rate - seconds
        last = seconds
        return before + seconds or (count - 1) / rate

    yield from _sampled(capture, clock, fps)
    if not count:
        raise InputError(f"{path}: unreadable video; expected one that OpenCV decodes, such as mp4")
    if _cut_off(path):
        raise InputError(f"{path}: breaks off after {count} of {told:.0f} frames; the file is cut off")


def count(path: str, fps: float) -> int:
    """How many frames `frames` gives, about; 0 where that is not known."""
    capture = _open(path)
    own, told = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    return max(0, round(told * min(1.0, fps / own))) if own else 0


def rate(path: str, fps: float) -> float:
    """How many frames a second `frames` gives: `fps`, or the video's own where that is less."""
    capture = _open(path)
    own = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return min(fps, own or fps)


def _open(path: str) -> cv2.VideoCapture:
    if not os.path.isfile(path):
        return cv2.VideoCapture()  # not opened: OpenCV would wait for a pipe
    return cv2.VideoCapture(_encoded(path), cv2.CAP_FFMPEG)


def _cut_off(path: str) -> bool:
    """Whether frames are missing at the end by the sizes in an mp4, mov, 3gp or avi; other files do not say.

    The number of frames says nothing: a video trimmed by an edit list tells of more than it shows.
    """
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start, end, at = file.read(8), file.seek(0, os.SEEK_END), 0
        riff = start[:4] == b"RIFF"
        while (riff or start[4:] in _FIRST_BOXES) and at < end:
            file.seek(at)
            head = file.read(16)
            size = _riff_size(head) if riff else _box_size(head)
            if at + size > end:
                return riff or head[4:8] in (b"mdat", b"moof")  # what trails them is no frames
            if not size:
                break
            at += size + 8 * riff
    return False


def _riff_size(head: bytes) -> int:
    """Bytes of a RIFF chunk without its head, which some writers count, some not; 0 where it is unknown."""
    size = int.from_bytes(head[4:8], "little")
    return size if head[:4] == b"RIFF" and size != 0xFFFFFFFF else 0


def _box_size(head: bytes) -> int:
    """Bytes of an ISO base media file's box; 0 where it goes on to the end, or is none."""
    size = int.from_bytes(head[:4], "big")
    if size == 1:
        size = int.from_bytes(head[8:16], "big")
    return size if size >= 8 else 0


def _encoded(path: str | Path) -> Any:
    """OpenCV crashes on a str with bytes that are not UTF-8, but takes the bytes. FFmpeg takes what stands
    before a colon for a protocol, but no path from the root."""
    return os.fsencode(os.path.abspath(path))


def webcam(index: int, fps: float) -> Iterator[Frame]:
    """The frames of a webcam as they come, at most `fps` a second, until Ctrl-C.

    Raises:
      InputError: there is none, or it is gone.
    """
    start, ended = time.monotonic(), False

    def end(*_: Any) -> None:
        nonlocal ended
        ended = True
        signal.signal(signal.SIGINT, before)  # another Ctrl-C ends all

    before = signal.signal(signal.SIGINT, end)
    try:
        capture = cv2.VideoCapture(index)
        yield from _sampled(capture, lambda: time.monotonic() - start, fps, lambda: not ended)
    finally:
        signal.signal(signal.SIGINT, before)
    if not ended:
        raise InputError(f"webcam {index}: gives no frames")


def _sampled(
    capture: cv2.VideoCapture,
    clock: Callable[[], float],
    fps: float,
    goes_on: Callable[[], bool] = lambda: True,
) -> Iterator[Frame]:
    try:
        due = 0.0
        while goes_on() and capture.grab():
            seconds = clock()
            if seconds < due - 1e-4:  # times are rounded in the file
                continue
            readable, pixels = capture.retrieve()
            if not readable:
                return
            yield Frame(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8), seconds)
            due = (int(seconds * fps + 1e-4) + 1) / fps
    finally:
        capture.release()


class Writer:
    """Writes a video (.mp4, MPEG-4) of RGB uint8 [H, W, 3] frames of the first one's size; a context manager.

    The file is there at the end, whole, or not at all: not where there was no frame either.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps if fps < _EXACT_FPS else round(fps)
        self._stack = contextlib.ExitStack()
        self._video: cv2.VideoWriter | None = None
        self._frames = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Adds a frame; InputError where the file cannot be written."""
        if self._video is None:
            self._size = pixels.shape[1] // 2 * 2, pixels.shape[0] // 2 * 2  # the codec wants them even
            temporary = _encoded(self._stack.enter_context(replacing(self._path)))
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._video = cv2.VideoWriter(temporary, cv2.CAP_FFMPEG, code, self._fps, self._size)
            self._stack.push(functools.partial(self._check, temporary))
            self._stack.callback(self._video.release)
            if not self._video.isOpened():
                raise InputError(f"{self._path}: cannot be written")
        self._video.write(cv2.cvtColor(cv2.resize(pixels, self._size), cv2.COLOR_RGB2BGR))
        self._frames += 1

    def _check(self, written: Any, *error: Any) -> None:
        """Raises InputError where the finished file lacks frames: OpenCV says nothing of a full disk."""
        if any(error):
            return
        capture = cv2.VideoCapture(written)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        if count < self._frames:
            raise InputError(f"{self._path}: cannot be written whole; is the disk full?")
