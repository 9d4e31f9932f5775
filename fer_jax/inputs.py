"""What a command line names: photographs, folders of them, videos, a webcam."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fer_jax import video
from fer_jax.data import photos
from fer_jax.errors import InputError


class Source(NamedTuple):
    """One photograph, video or webcam.

    Attributes:
      name: what people call it: the path as given, or found in the folder as given.
      place: where it belongs in a directory of results: below the folder it was found in.
      webcam: the index, of a webcam.
      error: why there is nothing to read.
    """

    name: str
    place: Path
    webcam: int | None = None
    error: str = ""

    @property
    def moves(self) -> bool:
        """Whether it has frames, at times."""
        return self.webcam is not None or self.place.suffix.lower() in video.SUFFIXES

    def rate(self, fps: float) -> float:
        """Of what moves, the frames a second that `pictures` gives; a webcam's are not known before."""
        return fps if self.webcam is not None else video.rate(self.name, fps)

    def expected(self, fps: float) -> int:
        """How many pictures, about."""
        moves = self.moves and self.webcam is None and not self.error
        return max(1, video.count(self.name, fps)) if moves else 1

    def pictures(self, fps: float) -> Iterator[photos.Picture]:
        """The photograph, or the frames, `fps` a second; what goes wrong is a picture too."""
        if self.error:
            yield photos.Picture(self.name, _raising(self.error))
        elif not self.moves:
            yield photos.Picture(self.name, lambda: photos.decode(self.name, self.name))
        else:
            yield from self._frames(fps)

    def _frames(self, fps: float) -> Iterator[photos.Picture]:
        frames = video.frames(self.name, fps) if self.webcam is None else video.webcam(self.webcam, fps)
        try:
            for pixels, seconds in frames:
                photo = photos.Photo(pixels, pixels.shape[1], pixels.shape[0])
                yield photos.Picture(self.name, functools.partial(_given, photo), round(seconds, 3))
        except InputError as error:
            yield photos.Picture(self.name, _raising(str(error)))


def sources(names: Sequence[str], passed_over: Path | None = None) -> list[Source]:
    """The sources that are named, folders walked in sorted order.

    Args:
      names: paths of photographs, videos and folders; a number of up to three digits that is no path is a
        webcam's. Of a folder whatever is called like an image or a video counts, but for hidden ones; links
        are followed, but no folder is entered twice.
      passed_over: a directory that is not walked.

    Raises:
      InputError: that is one of `names`.
    """
    found = []
    for name in names:
        path = Path(name)
        if os.path.isdir(name):
            if passed_over and os.path.realpath(path) == os.path.realpath(passed_over):
                raise InputError(f"{name}: expected other folders to read from and to write to")
            found += list(_walk(path, passed_over)) or [
                Source(name, Path(path.name), error="folder without images or videos")
            ]
        elif name.isdecimal() and len(name) < 4 and not os.path.exists(name):
            found.append(Source(f"webcam {name}", Path(f"webcam_{name}"), webcam=int(name)))
        else:
            found.append(Source(name, Path(path.name)))
    return found


def _walk(folder: Path, passed_over: Path | None) -> Iterator[Source]:
    """What a folder holds; at the end the folders in it that cannot be read."""
    suffixes = (*photos.SUFFIXES, *video.SUFFIXES)
    entered = {os.path.realpath(passed_over)} if passed_over else set()
    unreadable: list[OSError] = []
    for directory, names, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        if (real := os.path.realpath(directory)) in entered:
            names.clear()
            continue
        entered.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                file = Path(directory, name)
                yield Source(str(file), file.relative_to(folder))
    for error in unreadable:
        where = Path(error.filename)
        yield Source(str(where), where.relative_to(folder), error=f"cannot be read ({error.strerror})")


def _given(photo: photos.Photo) -> photos.Photo:
    return photo


def _raising(error: str) -> Callable[[], photos.Photo]:
    def decode() -> photos.Photo:
        raise InputError(error)

    return decode
