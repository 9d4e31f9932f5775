"""Draws what was predicted: boxes and labels into the photograph, bars of probabilities beside it."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fer_jax.data.photos import Photo, resized
from fer_jax.predictor import Face
from fer_jax.report import BLUE, LIGHT_GREY

_LEAST, _MOST = 640, 2048  # pixels of the longer side: smaller photographs are enlarged, larger ones shrunk
_LETTER = 1 / 45  # height of the letters, as a fraction of the longer side
_STRIP = 4  # longer sides that all columns of tables take at most: no crowd makes more than a JPEG can hold
_LINES = 40  # of a table, so that the frames of a video with many classes are no higher than its codec takes
# In letters: height of a line, length of the longest bar, space around things.
_LINE, _BAR, _GAP = 1.25, 7, 0.4


def draw(
    photo: Photo, faces: Sequence[Face], labels: Sequence[str], columns: int | None = None
) -> NDArray[np.uint8]:
    """The photograph with a box, a number and the label at each face, and a strip with a table a face.

    A table has a bar and a percentage for each label, up to 40: the dominant one in blue and bold, the others
    grey. The strip is to the right of the photograph, so that nothing of it is hidden but by the boxes' own
    labels. Its last table says how many faces find no place.

    Args:
      labels: of the model.
      columns: tables side by side; None for as many as the faces take, within bounds.

    Returns:
      RGB uint8 [H, W, 3]; its size follows from the photograph's, the labels and the columns.
    """
    factor = max(1.0, _LEAST / max(photo.pixels.shape[:2]))
    factor = min(factor, _MOST / max(photo.pixels.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in photo.pixels.shape[:2])
    pen = _Pen(labels, _LETTER * max(width, height))
    rows = max(1, height // pen.table_height)
    if columns is None:
        most = max(1, math.floor(_STRIP * max(width, height) / pen.table_width))
        columns = min(math.ceil(len(faces) / rows), most)
    shown = resized(Image.fromarray(photo.pixels).convert("RGB"), (width, height))
    pen.start(shown)
    for number, face in enumerate(faces, start=1):
        x, y, w, h = (face.region[name] for name in "xywh")
        across, down = width / photo.width, height / photo.height
        pen.box(x * across, y * down, (x + w) * across - 1, (y + h) * down - 1)
        pen.label(f"{number} {face.dominant_emotion}", x * across, y * down, width)
    size = (width + columns * pen.table_width, max(height, pen.table_height))
    image = Image.new("RGB", size, "white")
    image.paste(shown)
    pen.start(image)
    places = rows * columns
    for number, face in enumerate(faces[:places], start=1):
        column, row = divmod(number - 1, rows)
        more = len(faces) - places if number == places else 0
        pen.table(number, face, width + column * pen.table_width, row * pen.table_height, more)
    return np.asarray(image)


class _Pen:
    """Draws with letters of one height."""

    def __init__(self, labels: Sequence[str], letter: float) -> None:
        import matplotlib  # takes a while

        self._letter, self._gap = letter, _GAP * letter
        # Class names may be Greek, Cyrillic or Arabic, which Pillow's own font has not.
        font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        self._font = ImageFont.truetype(font, letter)
        self._names = max(self._font.getlength(text) for text in (*labels, "face 99"))
        numbers = self._font.getlength("100 %")
        self.table_width = math.ceil(self._names + _BAR * letter + numbers + 4 * self._gap)
        lines = min(len(labels), _LINES) + 1
        self.table_height = math.ceil(lines * _LINE * letter + 2 * self._gap)

    def start(self, image: Image.Image) -> None:
        """Everything from now on goes into this image."""
        self._draw = ImageDraw.Draw(image)

    def box(self, *corners: float) -> None:
        """A blue and a white line in a black one, to be seen on any ground, in grey too."""
        line = max(1, round(self._letter / 6))
        left, top, right, bottom = corners
        for inset, colour in ((0, "black"), (line, "white"), (2 * line, BLUE)):
            if left + inset < right - inset and top + inset < bottom - inset:
                inner = (left + inset, top + inset, right - inset, bottom - inset)
                self._draw.rectangle(inner, outline=colour, width=line)

    def label(self, text: str, left: float, bottom: float, width: int) -> None:
        """Black on white, above a box, or in it where there is no place above."""
        across, down = self._font.getlength(text) + 2 * self._gap, _LINE * self._letter
        left, top = max(0.0, min(left, width - across)), max(0.0, bottom - down)
        self._draw.rectangle((left, top, left + across, top + down), fill="white", outline="black")
        self._draw.text((left + self._gap, top + down / 2), text, "black", self._font, anchor="lm")

    def table(self, number: int, face: Face, left: float, top: float, more: int) -> None:
        """The face's number, and how many more faces there are, then a line for each of the most probable
        labels."""
        start, middle = left + self._gap, top + self._gap + _LINE * self._letter / 2
        bars, end = start + self._names + self._gap, left + self.table_width - self._gap
        self._text(f"face {number}", start, middle, "lm", bold=True)
        if more > 0:
            self._text(f"{more} more", end, middle, "rm", bold=True)
        shown = sorted(face.emotion, key=lambda name: -face.emotion[name])[:_LINES]
        for name, percent in face.emotion.items():
            if name not in shown:
                continue
            middle += _LINE * self._letter
            dominant = name == face.dominant_emotion
            length, half = max(1.0, percent / 100 * _BAR * self._letter), 0.4 * self._letter
            bar = (bars, middle - half, bars + length, middle + half)
            self._draw.rectangle(bar, fill=BLUE if dominant else LIGHT_GREY, outline="black")
            self._text(name, start, middle, "lm", dominant)
            self._text(f"{percent:.0f} %", end, middle, "rm", dominant)

    def _text(self, text: str, x: float, y: float, anchor: str, bold: bool) -> None:
        stroke = self._letter / 40 if bold else 0
        self._draw.text((x, y), text, "black", self._font, anchor=anchor, stroke_width=stroke)
