"""Emotions of the faces in photographs, by a trained model.

predictor = fer_jax.load("runs/openface")
for photo in predictor.predict(["photo.jpg", array, image]):
    for face in photo.faces:
        print(photo.name, face.region, face.dominant_emotion, face.emotion)
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import jax
import numpy as np
from numpy.typing import NDArray

from fer_jax import cache, compilation, detection, saved_model
from fer_jax.data import photos, preprocessing
from fer_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike = Union[str, Path, NDArray[Any], "Image"]
NO_FACE = "no face found"
BATCH_SIZE = 32
# Images a call: others are padded to the next, so that few programs are compiled.
_SHAPES = (1, 8, *(2 * 4**i for i in range(2, 12)))
_HELD = 256e6  # bytes of photographs that wait for a batch to fill, at most


@dataclasses.dataclass(frozen=True)
class Face:
    """One face.

    Attributes:
      region: {"x", "y", "w", "h"} of its box, in pixels of the upright photograph.
      confidence: that it is a face, 0 to 1; 0 where the photograph was given as a ready crop.
      emotion: percent by label, in the order of the model's outputs; they add up to 100.
    """

    region: dict[str, int]
    confidence: float
    emotion: dict[str, float]

    @property
    def dominant_emotion(self) -> str:
        """The label of the highest percentage."""
        return max(self.emotion, key=self.emotion.__getitem__)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What came of one photograph, or one frame of a video.

    Attributes:
      name: the path; of arrays and the like "image 0", "image 1", ... by their place.
      faces: the largest first.
      error: why there are none; "" where there are.
      model_sha256: of the model's file.
      seconds: of a frame, from the start of the video.
      photo: the photograph itself, where it was asked for.
    """

    name: str
    faces: tuple[Face, ...]
    error: str
    model_sha256: str
    seconds: float | None = None
    photo: photos.Photo | None = dataclasses.field(default=None, repr=False)

    def as_deepface(self) -> list[dict[str, Any]]:
        """A dict a face with what deepface's `analyze` gives, and where it is from.

        "region", "face_confidence", "emotion", "dominant_emotion" as there; "file", "model_sha256", of frames
        "seconds". Where there is no face, one dict whose region and dominant_emotion are None and whose
        "error" says why.
        """
        origin = {"file": self.name} | ({} if self.seconds is None else {"seconds": self.seconds})
        end = {"model_sha256": self.model_sha256}
        rows = [
            origin
            | {
                "region": face.region,
                "face_confidence": face.confidence,
                "emotion": face.emotion,
                "dominant_emotion": face.dominant_emotion,
            }
            | end
            for face in self.faces
        ]
        nothing: dict[str, Any] = {
            "region": None,
            "face_confidence": 0.0,
            "emotion": {},
            "dominant_emotion": None,
        }
        return rows or [origin | nothing | end | {"error": self.error}]


class Predictor:
    """A trained model, ready to predict. `fer_jax.load` makes one; of use to one thread at a time."""

    def __init__(self, model: saved_model.SavedModel) -> None:
        """Puts variables on the device. Programs are compiled when first needed, and kept in the cache."""
        cache.keep_compiled_programs()
        self.spec, self.sha256 = model.spec, model.sha256
        self._variables = jax.device_put(model.variables)
        self.detector = functools.cache(detection.make)  # each is read once
        predict, size = self.spec.predictor(), self.spec.image_size

        @compilation.jit
        def forward(variables: Any, faces: jax.Array) -> jax.Array:
            return predict(variables, preprocessing.to_images(faces, size))

        self._forward = forward

    def probabilities(self, faces: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> NDArray[np.float32]:
        """The probability of every class.

        Args:
          faces: uint8 [N, side, side], of a model for colour [N, side, side, 3]; see `spec`.
          batch_size: images a call, at most.

        Returns:
          float32 [N, classes], in the order of `spec.class_names`.

        Raises:
          InputError: another shape or dtype, or no such batch size.
        """
        check_batch_size(batch_size)
        shape = (self.spec.side,) * 2 + (() if self.spec.channels == 1 else (3,))
        if faces.dtype != np.uint8 or faces.shape[1:] != shape:
            expected = ", ".join(["N", *map(str, shape)])
            raise InputError(f"faces: expected uint8 [{expected}], got {faces.dtype} {list(faces.shape)}")
        shapes = sorted({*(size for size in _SHAPES if size < batch_size), batch_size})
        parts = [np.empty((0, len(self.spec.class_names)), np.float32)]
        for start in range(0, len(faces), batch_size):
            part = faces[start : start + batch_size]
            size = next(size for size in shapes if size >= len(part))
            padded = part[np.minimum(np.arange(size), len(part) - 1)]
            parts.append(np.asarray(self._forward(self._variables, padded))[: len(part)])
        return np.concatenate(parts)

    def predict(
        self,
        images: Iterable[ImageLike],
        *,
        detector: str = "opencv",
        margin: float = 0.0,
        min_confidence: float = 0.0,
        batch_size: int = BATCH_SIZE,
    ) -> list[Prediction]:
        """Finds the faces of photographs and predicts their emotions.

        A file that cannot be read, or a photograph without a face, is a `Prediction` with an `error`.

        Args:
          images: paths of photographs (see `fer_jax.data.photos` for what is read); arrays, uint8 or uint16
            [H, W], grey, or uint8 [H, W, 3] or [H, W, 4], RGB or RGBA; images of Pillow's. Read one by one:
            a generator of any length will do.
          detector: "opencv", "none" for ready crops, or the path of a YuNet model.
          margin: around the box, on every side, as a fraction of its longer one. FER2013's faces have none
            around OpenCV's boxes.
          min_confidence: faces of less are passed over.
          batch_size: faces a call of the model, at most.

        Returns:
          One for every image, in order.

        Raises:
          InputError: `images` is a single one, or holds what is no image; an option is out of range.
        """
        predictions = self.stream(
            _pictures(images),
            detector=detector,
            margin=margin,
            min_confidence=min_confidence,
            batch_size=batch_size,
        )
        return list(predictions)

    def stream(
        self,
        pictures: Iterable[photos.Picture],
        *,
        detector: str = "opencv",
        margin: float = 0.0,
        min_confidence: float = 0.0,
        batch_size: int = BATCH_SIZE,
        keep_photos: bool = False,
    ) -> Iterator[Prediction]:
        """As `predict`, of pictures that are decoded when their turn comes, in batches.

        Args:
          keep_photos: give every `Prediction` its `photo`.
        """
        check_options(margin, min_confidence, batch_size)
        detect = self.detector(detector)
        waiting: list[_Found] = []
        for picture in pictures:
            waiting.append(self._find(picture, detect, margin, min_confidence, keep_photos))
            held = sum(found.photo.pixels.nbytes for found in waiting if found.photo)
            faces = sum(len(found.crops) for found in waiting)
            if max(faces, len(waiting)) >= batch_size or held > _HELD:
                yield from self._finish(waiting, batch_size)
                waiting = []
        yield from self._finish(waiting, batch_size)

    def _find(
        self,
        picture: photos.Picture,
        detect: detection.Detector,
        margin: float,
        min_confidence: float,
        keep_photo: bool,
    ) -> "_Found":
        try:
            photo = picture.decode()
        except InputError as error:
            return _Found(picture, None, [], [], str(error).removeprefix(f"{picture.name}: "))
        found, crops = detect(photo.pixels), [photo.pixels]
        if detect is not detection.whole:
            found = [face for face in found if face.confidence >= min_confidence]
            crops = [detection.crop(photo.pixels, face, margin) for face in found]
        return _Found(
            picture,
            photo if keep_photo else None,
            [_in_original(face, photo) for face in found],
            [self._as_trained(crop) for crop in crops],
            "" if found else NO_FACE,
        )

    def _as_trained(self, crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A crop as the faces that the model has learnt from: grey or RGB, of their side."""
        from PIL import Image

        plain = Image.fromarray(crop).convert("L" if self.spec.channels == 1 else "RGB")
        return photos.squared(np.asarray(plain), self.spec.side)

    def _finish(self, waiting: list["_Found"], batch_size: int) -> Iterator[Prediction]:
        crops = [crop for found in waiting for crop in found.crops]
        percent = iter(100 * self.probabilities(np.stack(crops), batch_size) if crops else ())
        for found in waiting:
            faces = [
                Face(
                    {name: getattr(face, name) for name in "xywh"},
                    face.confidence,
                    dict(zip(self.spec.class_names, next(percent).tolist(), strict=True)),
                )
                for face in found.faces
            ]
            picture = found.picture
            yield Prediction(
                picture.name, tuple(faces), found.error, self.sha256, picture.seconds, found.photo
            )


class _Found(NamedTuple):
    """The faces of a picture, boxes in pixels of the original, and their crops; or why there are none."""

    picture: photos.Picture
    photo: photos.Photo | None
    faces: list[detection.Detection]
    crops: list[NDArray[np.uint8]]
    error: str


def check_options(margin: float, min_confidence: float, batch_size: int) -> None:
    """Raises InputError for a number out of range."""
    detection.check_margin(margin, "margin")
    if not 0 <= min_confidence <= 1:
        raise InputError(f"min_confidence: expected 0 to 1, got {min_confidence}")
    check_batch_size(batch_size)


def check_batch_size(batch_size: int) -> None:
    """Raises InputError for less than 1."""
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")


def _in_original(face: detection.Detection, photo: photos.Photo) -> detection.Detection:
    height, width = photo.pixels.shape[:2]
    across, down = photo.width / width, photo.height / height
    x0, x1 = round(face.x * across), round((face.x + face.w) * across)
    y0, y1 = round(face.y * down), round((face.y + face.h) * down)
    return detection.Detection(x0, y0, x1 - x0, y1 - y0, face.confidence)


def _pictures(images: Iterable[ImageLike]) -> Iterator[photos.Picture]:
    single = isinstance(images, np.ndarray) and (images.ndim == 2 or images.shape[2:] in ((3,), (4,)))
    if single or isinstance(images, str | Path) or hasattr(images, "convert"):
        raise InputError("images: expected several, got a single one; make it a list")
    for index, image in enumerate(images):
        if isinstance(image, str | Path):
            yield photos.Picture(str(image), functools.partial(photos.decode, image, str(image)))
        else:
            name = f"image {index}"
            yield photos.Picture(name, functools.partial(photos.of_image, _as_pillow(image, name), name))


def _as_pillow(image: Any, name: str) -> "Image":
    """An array, or an image of Pillow's, as the latter."""
    from PIL import Image

    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise InputError(f"{name}: expected pixels, got {image.width}x{image.height}")
        return image
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"{name}: expected a path, an array or an image of Pillow's, got {type(image).__name__}"
        )
    grey = image.ndim == 2 and image.dtype in (np.uint8, np.uint16)
    colour = image.ndim == 3 and image.shape[2] in (3, 4) and image.dtype == np.uint8
    if not image.size or not (grey or colour):
        raise InputError(
            f"{name}: expected uint8 or uint16 [H, W], or uint8 [H, W, 3] or [H, W, 4], got {image.dtype} "
            f"{list(image.shape)}"
        )
    return Image.fromarray(image)
