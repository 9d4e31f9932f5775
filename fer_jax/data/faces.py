"""The embedded data set: drawn 48x48 grey faces, so that everything runs with nothing downloaded.

A face is a set of random numbers (identity, pose, light) and the strengths of a few facial action units;
it is painted as soft-edged shapes, far to near, for a batch of faces at once. The faces are made up: numbers
measured on them say that the software works, and nothing about recognising the emotions of people.
"""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fer_jax.errors import InputError

Array = NDArray[np.float32]
Numbers = Mapping[str, Array]  # name → a number a face, [N, 1, 1]

_Point = tuple[Array | float, Array | float]  # (x, y)

SIZE = 48

# Emotions in the order of their labels: FER2013's count of images, and the action units that show the emotion
# in the prototypes of EMFACS (Friesen & Ekman 1983) over the units of FACS (Ekman & Friesen 1978):
# 1 inner brow raiser, 2 outer brow raiser, 4 brow lowerer, 5 upper lid raiser, 6 cheek raiser, 7 lid
# tightener, 9 nose wrinkler, 12 lip corner puller, 15 lip corner depressor, 16 lower lip depressor,
# 20 lip stretcher, 23 lip tightener, 26 jaw drop.
PROTOTYPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "angry": (4953, (4, 5, 7, 23)),
    "disgust": (547, (9, 15, 16)),
    "fear": (5121, (1, 2, 4, 5, 7, 20, 26)),
    "happy": (8989, (6, 12)),
    "sad": (6077, (1, 4, 15)),
    "surprise": (4002, (1, 2, 5, 26)),
    "neutral": (6198, ()),
}
ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 12, 15, 16, 20, 23, 26)

_CHUNK = 24  # faces painted at once: their intermediate images stay in the processor's cache


def draw(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draws faces whose classes are as unequal in number as FER2013's.

    Args:
      count: how many faces.
      seed: the same seed and count give the same faces, in the same order.

    Returns:
      Images, uint8 [count, 48, 48], and labels, int32 [count]: angry, disgust, fear, happy, sad, surprise,
      neutral = 0..6, in random order. The number of faces in each class is its share of FER2013's 35,887
      images, rounded by largest remainder.

    Raises:
      InputError: `count` is below 1 or `seed` is below 0.
    """
    if count < 1:
        raise InputError(f"drawn faces: the count must be at least 1, not {count}")
    if seed < 0:
        raise InputError(f"drawn faces: the seed must be at least 0, not {seed}")
    rng = np.random.default_rng(seed)
    labels = _labels(rng, count)
    numbers = {**_person(rng, count), **_view(rng, count), **_expression(rng, labels)}
    images = np.empty((count, SIZE, SIZE), np.uint8)
    progress = tqdm(total=count, desc="drawing faces", unit="face", disable=count < 2000)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _paint({name: value[part] for name, value in numbers.items()}, rng)
        progress.update(len(images[part]))
    progress.close()
    return images, labels


def _labels(rng: np.random.Generator, count: int) -> NDArray[np.int32]:
    sizes = np.array([size for size, _ in PROTOTYPES.values()])
    share = sizes * count / sizes.sum()
    counts = np.floor(share).astype(int)
    counts[np.argsort(counts - share, kind="stable")[: count - counts.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), counts))


# Lengths below are in units of half a face's width, about 19 pixels; y points down, (0, 0) is between the
# eyes' lower lids. Tones run from 0 (black) to 1 (white).


def _uniform(rng: np.random.Generator, count: int, ranges: Mapping[str, tuple[float, float]]) -> Numbers:
    return {
        name: rng.uniform(low, high, (count, 1, 1)).astype(np.float32) for name, (low, high) in ranges.items()
    }


def _person(rng: np.random.Generator, count: int) -> Numbers:
    """What stays the same whatever a person feels: shape of the face, hair, skin, features at rest."""
    skin = rng.uniform(0.38, 0.85, (count, 1, 1)).astype(np.float32)
    shares = {"beard": 0.2, "moustache": 0.15, "glasses": 0.15, "fringe": 0.3, "long_hair": 0.4, "bald": 0.1}
    has = {name: (rng.random((count, 1, 1)) < share).astype(np.float32) for name, share in shares.items()}
    return {
        "skin": skin,
        "hair": skin * rng.uniform(0.1, 1.1, (count, 1, 1)).astype(np.float32),
        **has,
        **_uniform(
            rng,
            count,
            {
                "face_width": (0.88, 1.06),
                "face_height": (1.18, 1.42),
                "jaw": (0.0, 0.22),
                "hairline": (-1.0, -0.72),
                "parting": (-0.5, 0.5),
                "age": (0.0, 1.0),
                "eye_x": (0.36, 0.46),
                "eye_y": (-0.14, -0.06),
                "eye_width": (0.17, 0.23),
                "eye_open": (0.075, 0.12),
                "eye_tilt": (-0.12, 0.12),
                "iris": (0.05, 0.35),
                "brow_y": (-0.46, -0.36),
                "brow_width": (0.035, 0.085),
                "brow_slope": (-0.1, 0.12),
                "brow_arch": (0.0, 0.1),
                "nose_y": (0.26, 0.38),
                "nose_width": (0.09, 0.15),
                "mouth_y": (0.64, 0.76),
                "mouth_width": (0.27, 0.37),
                "mouth_bend": (-0.05, 0.05),
                "lip": (0.05, 0.11),
                "lip_tone": (0.6, 0.88),
            },
        ),
    }


def _view(rng: np.random.Generator, count: int) -> Numbers:
    """How the person is seen: pose, light, background, sharpness, exposure, noise."""
    return _uniform(
        rng,
        count,
        {
            "roll": (-0.22, 0.22),  # radians
            "yaw": (-0.16, 0.16),  # shift of the features on the face
            "pitch": (-0.07, 0.07),
            "shift_x": (-2.5, 2.5),  # pixels
            "shift_y": (-2.5, 2.5),
            "scale": (18.0, 21.5),  # pixels a unit
            "gaze": (-0.07, 0.07),
            "light_x": (-0.4, 0.4),
            "light_y": (-0.35, 0.2),
            "ambient": (0.85, 1.25),
            "background": (0.05, 0.95),
            "background_slope": (-0.15, 0.15),
            "soft": (1.0, 2.4),  # pixels over which an edge fades
            "noise": (0.01, 0.04),
        },
    )


def _expression(rng: np.random.Generator, labels: NDArray[np.int32]) -> Numbers:
    """Strengths of the action units, 0 to 1 and named au1, au2, ...

    An emotion has one intensity a face, about which its units vary; now and then a unit that belongs to
    another emotion stirs as well, as faces in photographs do.
    """
    shows = np.array([[unit in units for unit in ACTION_UNITS] for _, units in PROTOTYPES.values()])
    shape = (len(labels), len(ACTION_UNITS))
    intensity = rng.uniform(0.35, 1.0, (len(labels), 1)) * rng.uniform(0.5, 1.1, shape)
    stray = rng.uniform(0.0, 0.4, shape) * (rng.random(shape) < 0.12)
    strength = np.clip(np.where(shows[labels], intensity, stray), 0, 1).astype(np.float32)
    return {f"au{unit}": strength[:, i, None, None] for i, unit in enumerate(ACTION_UNITS)}


class _Canvas:
    """Images being painted, [N, 48, 48] float32, with the coordinates of their pixels on the face."""

    def __init__(self, n: SimpleNamespace) -> None:
        pixel = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
        right, down = pixel[None, None, :] - n.shift_x, pixel[None, :, None] - n.shift_y
        cos, sin = np.cos(n.roll) / n.scale, np.sin(n.roll) / n.scale
        self.x = right * cos + down * sin
        self.y = down * cos - right * sin + 0.06
        self.sharpness = n.scale / n.soft
        self.image = n.background + n.background_slope * self.y * np.ones_like(self.x)

    def fill(self, inside: Array, tone: Array | float, opacity: Array | float = 1.0) -> None:
        """Lays a tone over a shape, given the signed distance (positive inside, in units) to its edge."""
        cover = inside * self.sharpness
        cover += 0.5
        np.clip(cover, 0, 1, out=cover)
        cover *= opacity
        self.image += cover * (tone - self.image)


def _paint(numbers: Numbers, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paints the faces of one chunk, uint8 [N, 48, 48]."""
    n = SimpleNamespace(**numbers)
    canvas = _Canvas(n)
    _paint_head(canvas, n)
    # Turning the head shifts the features over the face: that is all there is of a third dimension.
    canvas.x, canvas.y = canvas.x - n.yaw, canvas.y - n.pitch
    side = np.abs(canvas.x)  # features come in pairs: both sides are painted at once
    _paint_skin(canvas, side, n)
    _paint_eyes(canvas, side, n)
    _paint_brows(canvas, side, n)
    _paint_mouth(canvas, side, n)
    light = n.ambient * (1 + n.light_x * canvas.x + n.light_y * canvas.y)
    grain = n.noise * rng.standard_normal(canvas.image.shape, np.float32)
    return np.clip(255 * (canvas.image * light + grain) + 0.5, 0, 255).astype(np.uint8)


def _ellipse(x: Array, y: Array, width: Array | float, height: Array | float) -> Array:
    """About the distance to an ellipse's edge: exact on its shorter axis, too short elsewhere."""
    shorter = np.minimum(width, height, dtype=np.float32)
    return (1 - np.sqrt((x / width) ** 2 + (y / height) ** 2)) * shorter


def _stroke(x: Array, y: Array, start: _Point, end: _Point, width: Array | float) -> Array:
    """A line with round ends between two points."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    x, y = x - start[0], y - start[1]
    square = along_x**2 + along_y**2
    t = np.clip(x * (along_x / square) + y * (along_y / square), 0, 1)
    return width / 2 - np.sqrt((x - t * along_x) ** 2 + (y - t * along_y) ** 2)


def _paint_head(canvas: _Canvas, n: SimpleNamespace) -> None:
    x, y = canvas.x, canvas.y
    hair = 1 - n.bald
    canvas.fill(_ellipse(x, y + 0.25, n.face_width + 0.2, 1.2), n.hair, hair)
    canvas.fill(np.minimum(n.face_width + 0.22 - np.abs(x), y + 0.3), n.hair, hair * n.long_hair)
    canvas.fill(np.minimum(0.6 - np.abs(x), y - 0.6), n.skin * 0.7)  # neck
    canvas.fill(_ellipse(np.abs(x) - n.face_width, y - 0.08, 0.14, 0.25), n.skin * 0.8, 1 - n.long_hair)
    height = n.face_height + 0.14 * n.au26
    # Below the eyes the face grows narrow towards the jaw.
    width = n.face_width * (1 - n.jaw * np.clip(y, 0, 2) ** 2 / 2)
    face = _ellipse(x, y, width, height)
    canvas.fill(face, n.skin * (0.82 + 0.25 * np.clip(face, 0, 0.8)))
    hairline = n.hairline + 0.2 * (x - n.parting) ** 2 + 0.3 * n.fringe
    canvas.fill(np.minimum(face + 0.05, hairline - y), n.hair, hair)
    canvas.fill(np.minimum(face, y - 0.95 + x**2), np.minimum(n.hair, n.skin * 0.6), 0.7 * n.beard)


def _paint_skin(canvas: _Canvas, side: Array, n: SimpleNamespace) -> None:
    """Nose, cheeks and the wrinkles that action units make."""
    y, shade, dark = canvas.y, n.skin * 0.72, n.skin * 0.35
    nose = n.nose_y - 0.07 * n.au9
    width = n.nose_width + 0.035 * n.au9
    canvas.fill(
        _stroke(canvas.x, y, (0.05 * np.sign(n.light_x), -0.05), (0.0, nose - 0.08), 0.1), n.skin * 1.1, 0.6
    )
    canvas.fill(_stroke(side, y, (0.1, -0.1), (width + 0.02, nose - 0.04), 0.05), shade, 0.6)
    canvas.fill(_ellipse(side - width * 0.75, y - nose, 0.065, 0.04), dark)
    # Cheeks raised (6) and nose wrinkled (9): the fold from nose to mouth deepens.
    fold = np.clip(0.2 * n.age + 0.6 * n.au12 + 0.9 * n.au9, 0, 1)
    canvas.fill(
        _stroke(side, y, (width + 0.08, nose - 0.02), (0.48, n.mouth_y - 0.12), 0.05), shade * 0.8, fold
    )
    canvas.fill(_ellipse(side - 0.52, y - 0.24, 0.22, 0.13), n.skin * 1.2, 0.7 * n.au6)
    canvas.fill(
        _stroke(side, y, (n.eye_x + 0.28, n.eye_y), (n.eye_x + 0.4, n.eye_y + 0.06), 0.04), shade, n.au6
    )
    for i in range(2):
        line = n.eye_y + 0.02 + 0.11 * i
        canvas.fill(_stroke(side, y, (0.0, line + 0.03), (0.16, line - 0.04), 0.045), dark, 0.8 * n.au9)
        across = n.brow_y - 0.22 - 0.11 * i + 0.1 * side**2
        canvas.fill(np.minimum(0.025 - np.abs(y - across), 0.5 - side), shade, n.au1 * (1 - n.fringe))
    canvas.fill(_stroke(side, y, (0.07, n.brow_y - 0.08), (0.05, n.brow_y + 0.12), 0.04), dark, 0.8 * n.au4)


def _paint_eyes(canvas: _Canvas, side: Array, n: SimpleNamespace) -> None:
    x = side - n.eye_x
    y = canvas.y - n.eye_y + n.eye_tilt * x
    bow = 1 - (x / n.eye_width) ** 2
    upper = n.eye_open * (1 + 0.75 * n.au5 - 0.3 * n.au7 - 0.25 * n.au6 - 0.2 * n.au4 - 0.3 * n.au9)
    lower = n.eye_open * (0.65 + 0.2 * n.au26 * n.au5 - 0.6 * np.maximum(n.au7, n.au6) - 0.3 * n.au9)
    over, under = y + upper * bow, lower * bow - y
    canvas.fill(_ellipse(x, y, 0.3, 0.19), n.skin * 0.8, 0.5)
    within = n.eye_width - np.abs(x)
    white = np.minimum(np.minimum(over, under), within)
    canvas.fill(white, 0.45 + 0.5 * n.skin)
    gaze = x - n.gaze * np.sign(canvas.x)
    canvas.fill(np.minimum(white, _ellipse(gaze, y, 0.095, 0.095)), n.iris)
    canvas.fill(np.minimum(white, _ellipse(gaze, y, 0.045, 0.045)), 0.02)
    canvas.fill(np.minimum(0.03 - np.abs(over), 0.02 + within), n.skin * 0.2)
    canvas.fill(np.minimum(0.018 - np.abs(under), within), n.skin * 0.5, 0.7)
    bag = np.minimum(0.025 - np.abs(under + 0.07), within)
    canvas.fill(bag, n.skin * 0.65, np.clip(0.3 * n.age + 0.7 * np.maximum(n.au6, n.au7), 0, 1))
    frame = 0.022 - np.abs(_ellipse(x, y - 0.04, 0.33, 0.27))
    bridge = np.minimum(0.022 - np.abs(y), n.eye_x - 0.32 - side)
    canvas.fill(np.maximum(frame, bridge), 0.1, n.glasses)


def _paint_brows(canvas: _Canvas, side: Array, n: SimpleNamespace) -> None:
    inner, outer = n.eye_x - 0.24 - 0.06 * n.au4, n.eye_x + 0.27
    t = (side - inner) / (outer - inner)  # 0 at the inner end, 1 at the outer
    rest = n.brow_y + n.brow_slope * (t - 0.5) + n.brow_arch * (2 * t - 1) ** 2
    lowered = n.au4 * (0.17 - 0.1 * t) * (1 - 0.55 * n.au1) + 0.12 * n.au9 * (1 - 0.5 * t)
    raised = 0.2 * n.au1 * (1 - t) + 0.2 * n.au2 * t
    brow = n.brow_width * (1.15 - 0.5 * t) - np.abs(canvas.y - rest - lowered + raised)
    canvas.fill(
        np.minimum(brow, np.minimum(side - inner, outer - side)), np.minimum(n.hair, n.skin) * 0.55, 0.9
    )


def _paint_mouth(canvas: _Canvas, side: Array, n: SimpleNamespace) -> None:
    width = n.mouth_width + 0.13 * n.au12 + 0.13 * n.au20 - 0.08 * n.au26 - 0.05 * n.au23 + 0.03 * n.au16
    t2 = (side / width) ** 2
    bow = (1 - t2) * (1 + t2 * np.maximum(n.au26, n.au16))  # an open mouth is rounder
    # The corners go up (12) or down (15) along a parabola; the middle moves the other way a little.
    bend = n.mouth_bend - 0.27 * n.au12 + 0.22 * n.au15 + 0.12 * n.au20
    line = n.mouth_y - 0.04 * n.au9 + bend * (t2 - 0.35)
    smile = np.clip(2 * n.au12 - 0.6, 0, 1)  # a broad smile bares the teeth
    open_up = 0.1 * n.au26 + 0.07 * n.au9
    open_down = 0.34 * n.au26 * (1 - 0.35 * n.au20) + 0.2 * smile + 0.16 * n.au16 + 0.05 * n.au20
    lip = n.lip * (1 - 0.65 * n.au23 - 0.25 * n.au20 - 0.2 * n.au12)
    y = canvas.y - line
    above, below = y + (open_up + lip) * bow, (open_down + 1.3 * lip) * bow - y
    within = width - side
    canvas.fill(np.minimum(np.minimum(above, below), within), n.skin * n.lip_tone)
    inside = np.minimum(np.minimum(y + open_up * bow, open_down * bow - y), within)
    canvas.fill(inside, n.skin * 0.12)
    bared = np.maximum(smile, n.au20)
    canvas.fill(np.minimum(inside, 0.13 - open_up - y), 0.5 + 0.5 * n.skin, 0.9 * bared)
    canvas.fill(np.minimum(inside, y - open_down * bow + 0.11), 0.5 + 0.5 * n.skin, 0.8 * n.au16)
    canvas.fill(np.minimum(0.022 - np.abs(y), within), n.skin * 0.3, np.clip(1 - 8 * open_down, 0, 1))
    # Corners pulled up, down or outwards leave a dimple.
    pull = np.maximum(np.maximum(n.au12, n.au15), n.au20)
    corner = n.mouth_y - 0.04 * n.au9 + bend * 0.65
    canvas.fill(_ellipse(side - width, canvas.y - corner, 0.05, 0.06), n.skin * 0.5, 0.7 * pull)
    canvas.fill(
        _stroke(side, canvas.y, (0.0, n.mouth_y + 0.3), (0.14, n.mouth_y + 0.31), 0.06),
        n.skin * 0.75,
        0.6 * np.maximum(n.au23, n.au15),
    )
    moustache = np.minimum(canvas.y - n.nose_y - 0.1 - 0.5 * side**2, -y - open_up - 0.4 * n.lip)
    canvas.fill(np.minimum(moustache, 0.42 - side), np.minimum(n.hair, n.skin * 0.5), 0.7 * n.moustache)
