"""Annotated copies of photographs and videos, in a directory."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fer_jax import annotate, video
from fer_jax.files import LONGEST, replacing, shortened, writing_to
from fer_jax.inputs import Source
from fer_jax.predictor import Prediction


class AnnotatedFiles:
    """Writes NAME_annotated.jpg of a photograph with faces, .mp4 of a video or webcam; a context manager.

    What lay in a folder lies in the same one here. Each file is there whole or not at all.
    """

    def __init__(self, directory: Path, labels: Sequence[str], fps: float, taken: Iterable[str]) -> None:
        """Makes the directory.

        Args:
          fps: of the videos, at most; a slower one keeps its own rate. A webcam's always have it.
          taken: paths that must not be written.

        Raises:
          InputError: it cannot be made.
        """
        self._directory, self._labels, self._fps = directory, labels, fps
        self._taken = {os.path.realpath(path) for path in taken}
        self._video: tuple[Source, video.Writer] | None = None
        self._stack = contextlib.ExitStack()
        with writing_to(directory):
            directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "AnnotatedFiles":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, source: Source, prediction: Prediction) -> None:
        """Adds a photograph, or the next frame; the frames of a video come one after the other.

        Raises:
          InputError: a file cannot be written.
        """
        if self._video and self._video[0] is not source:
            self._stack.close()  # the last one has ended
            self._video = None
        if not prediction.photo or not (prediction.faces or source.moves):
            return
        columns = 1 if source.moves else None  # frames are of one size
        pixels = annotate.draw(prediction.photo, prediction.faces, self._labels, columns)
        if source.moves:
            if not self._video:
                writer = video.Writer(self._new(source.place, ".mp4"), source.rate(self._fps))
                self._video = source, self._stack.enter_context(writer)
            self._video[1].write(pixels)
        else:
            path = self._new(source.place, ".jpg")
            with writing_to(path), replacing(path) as temporary:
                Image.fromarray(pixels).save(temporary, quality=92)

    def _new(self, place: Path, suffix: str) -> Path:
        """A name that is not taken, in a directory that exists."""
        name = f"{shortened(place.stem, LONGEST)}_annotated"
        stem, number = self._directory / place.parent / name, 1
        path = stem.with_name(stem.name + suffix)
        while os.path.realpath(path) in self._taken:
            number += 1
            path = stem.with_name(f"{stem.name}_{number}{suffix}")
        self._taken.add(os.path.realpath(path))
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path
