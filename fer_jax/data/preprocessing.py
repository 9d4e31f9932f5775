"""From uint8 faces to what a backbone reads, inside jit: augmentation, resize, channels, scaling."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fer_jax.errors import InputError

# Each backbone's own documented scaling; "tf" and "caffe" are Keras's names (imagenet_utils.py).
AUTO_SCALING = {"openface": "unit", "vggface": "unit", "resnet50": "caffe", "mobilenet": "tf"}
# ImageNet means of the channels blue, green, red (keras/src/applications/imagenet_utils.py).
IMAGENET_MEANS_BGR = (103.939, 116.779, 123.68)


def resolve_scaling(scaling: str, backbone: str) -> str:
    """The scaling for "auto": the backbone's own."""
    if scaling == "auto":
        return AUTO_SCALING[backbone]
    if scaling not in ("unit", "tf", "caffe"):
        raise InputError(f"data.scaling: unknown {scaling!r}, expected auto, unit, tf or caffe")
    return scaling


def resize(images: jax.Array, size: int) -> jax.Array:
    """Bilinear, half-pixel centres, no antialiasing, as `tf.image.resize`.

    Args:
      images: float32 [N, height, width, channels].
      size: height and width of the result in pixels.
    """
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, "linear", antialias=False)


def scale(images: jax.Array, scaling: str) -> jax.Array:
    """Maps float32 [N, H, W, 3] RGB images of 0..255 to the backbone's range.

    "unit": x / 255. "tf": x / 127.5 - 1. "caffe": channels to BGR, minus the ImageNet means.
    """
    if scaling == "unit":
        return images / 255.0
    if scaling == "tf":
        return images / 127.5 - 1.0
    return images[..., ::-1] - jnp.asarray(IMAGENET_MEANS_BGR)


def prepare(faces: jax.Array, size: int, scaling: str) -> jax.Array:
    """Faces of 0..255 (uint8 or float), grey [N, H, W] or RGB [N, H, W, 3], to float32 [N, size, size, 3],
    scaled."""
    return scale(to_images(faces, size), scaling)


def to_images(faces: jax.Array, size: int) -> jax.Array:
    """The same faces to RGB, float32 [N, size, size, 3] of 0..255."""
    images = faces.astype(jnp.float32)
    if images.ndim == 4:
        return resize(images, size)
    return jnp.repeat(resize(images[..., None], size), 3, axis=-1)


def augments(augment: Any) -> bool:
    """Whether any augmentation is on."""
    return bool(augment.flip or augment.rotation or augment.shift or augment.contrast)


def flipped(key: jax.Array, count: int) -> jax.Array:
    """Which of `count` faces `augmented` flips left-right under this key, where it flips: bool [count]."""
    return jax.random.bernoulli(jax.random.split(key, 4)[2], 0.5, (count,))


def augmented(key: jax.Array, faces: jax.Array, augment: Any) -> jax.Array:
    """A random view of every face, as Keras's layers RandomFlip, -Rotation, -Translation, -Contrast.

    Args:
      key: one PRNG key for the batch.
      faces: [N, H, W] or [N, H, W, 3] of 0..255.
      augment: `flip` (bool: left-right, every other face), `rotation` (largest turn, as a fraction of
        a full one, either way), `shift` (largest shift, as a fraction of the side, either way),
        `contrast` (largest relative change of contrast, either way, of every channel about its own mean).

    Returns:
      float32, of the faces' shape. Places beyond the border are filled by reflection.
    """
    count, height, width = faces.shape[:3]
    turn, shift, _, contrast = jax.random.split(key, 4)
    angles = 2 * jnp.pi * augment.rotation * jax.random.uniform(turn, (count,), minval=-1.0)
    sides = jnp.asarray((height, width), jnp.float32)
    shifts = augment.shift * sides * jax.random.uniform(shift, (count, 2), minval=-1.0)
    signs = jnp.where(flipped(key, count) & bool(augment.flip), -1.0, 1.0)
    factors = 1.0 + augment.contrast * jax.random.uniform(contrast, (count,), minval=-1.0)

    def view(face: jax.Array, angle: Any, offset: Any, sign: Any, factor: Any) -> jax.Array:
        y, x = jnp.meshgrid(
            jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
        )
        source_y = jnp.cos(angle) * y - jnp.sin(angle) * x + (height - 1) / 2 - offset[0]
        source_x = sign * (jnp.sin(angle) * y + jnp.cos(angle) * x) + (width - 1) / 2 - offset[1]

        def move(channel: jax.Array) -> jax.Array:
            return map_coordinates(channel, [source_y, source_x], order=1, mode="reflect")

        moved = move(face) if face.ndim == 2 else jax.vmap(move, -1, -1)(face)
        mean = moved.mean((0, 1))
        return jnp.clip((moved - mean) * factor + mean, 0.0, 255.0)

    return jax.vmap(view)(faces.astype(jnp.float32), angles, shifts, signs, factors)
