"""The forward pass of a run: from faces to logits, and with its frozen part done once an image."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax import cache, compilation, cut, features
from fer_jax.data import preprocessing
from fer_jax.epochs import LaneForward
from fer_jax.feature_files import StoredArray
from fer_jax.models import TRIAL_BATCH

log = logging.getLogger(__name__)

# Images, whatever the batch of training: the last bits of features depend on it, and of an entry of the cache
# that made room and is computed again they are to be the same.
_EXTRACTED_AT_ONCE = TRIAL_BATCH


def make_forward(config: Any, model: Any) -> cut.Forward:
    """forward(params, batch_stats, faces, key=None) -> (logits float32 [B, classes], batch_stats).

    Faces are uint8 [B, H, W] or [B, H, W, 3]. With a key in training mode: augmentation, dropout, the batch's
    statistics in the layers that learn. The backbone computes in `config.compute_dtype`, the head and all
    statistics in float32.
    """
    size = model.backbone.image_size
    scaling = preprocessing.resolve_scaling(config.data.scaling, config.backbone)
    dtype = jnp.dtype(config.compute_dtype)

    def forward(params: Any, batch_stats: Any, faces: jax.Array, key: Any = None) -> tuple[jax.Array, Any]:
        backbone = jax.tree.map(lambda x: x.astype(dtype), params["backbone"])
        variables = {"params": {**params, "backbone": backbone}, "batch_stats": batch_stats}
        if key is None:
            return model.apply(variables, _images(faces)), batch_stats
        dropout_key, augment_key = jax.random.split(key)
        if preprocessing.augments(config.augment):
            faces = preprocessing.augmented(augment_key, faces, config.augment)
        logits, updated = model.apply(
            variables, _images(faces), train=True, rngs={"dropout": dropout_key}, mutable=["batch_stats"]
        )
        return logits, {part: updated["batch_stats"].get(part, {}) for part in batch_stats}

    def _images(faces: jax.Array) -> jax.Array:
        return preprocessing.prepare(faces, size, scaling).astype(dtype)

    return forward


@dataclasses.dataclass(frozen=True)
class Hoisted:
    """A forward pass whose frozen part is done, or one with nothing done.

    Attributes:
      forward: from a row of each of `inputs` to logits.
      inputs: arrays [N, ...]: what crosses the cut, of every view of a face; without a cut the faces.
      tail: of (params, batch_stats) those without the variables that `forward` does not read.
      cut: whether the frozen part is done.
      words: the same for people.
    """

    forward: LaneForward
    inputs: Sequence[np.ndarray | StoredArray]
    tail: Callable[..., tuple[Any, Any]]
    cut: bool
    words: str


def hoist_frozen_part(
    config: Any, model: Any, params: Any, batch_stats: Any, learning: frozenset[str], faces: np.ndarray
) -> Hoisted:
    """Computes what is the same in every epoch once an image, where that can be.

    Args:
      params, batch_stats: of one lane.
      learning: names of the backbone's layers that learn.
      faces: uint8 [N, H, W] or [N, H, W, 3], the whole data set.

    Raises:
      InputError: there is no room for the features, or they cannot be written.
    """
    if not config.features.reuse:
        return _in_every_step(config, model, faces, "features.reuse is off")
    mirrored = mirrored_alone(config.augment)
    views = [faces, faces[:, :, ::-1]] if mirrored else [faces]
    frozen = params["backbone"].keys() - learning
    with ThreadPoolExecutor(1) as pool:  # hashes while the network is traced
        hashes = [pool.submit(cache.arrays_hash, {"faces": view}) for view in views if frozen]
        found, reason = find_cut(config, model, params, batch_stats, learning, faces.shape[1:])
    if found is None:
        return _in_every_step(config, model, faces, reason)

    crossing = ", ".join(f"{value.layer} {value.shape}" for value in found.crossing)
    words = f"computed once an image, up to {crossing}: {len(views) * found.bytes_per_image:,} bytes each"
    if mirrored:
        words += ", the mirrored view included"
    log.info("frozen part: %s%s", words, "; each view is computed by itself" if mirrored else "")
    hashed = [(view, future.result()) for view, future in zip(views, hashes, strict=True)]
    inputs = _features(config, found, model.backbone.image_size, params, batch_stats, hashed)
    return behind_cut(found, inputs, words)


def mirrored_alone(augment: Any) -> bool:
    """Whether a flip is the only augmentation: of all it leaves few enough views to compute each once."""
    return bool(augment.flip) and not any(value for name, value in augment.items() if name != "flip")


def find_cut(
    config: Any,
    model: Any,
    params: Any,
    batch_stats: Any,
    learning: frozenset[str],
    face_shape: tuple[int, ...] = (48, 48),
) -> tuple[cut.Cut | None, str]:
    """`cut.split` of the forward pass on one view of the faces: `mirrored_alone`, it leaves the flip out."""
    one_view = config.copy_and_resolve_references()
    if mirrored_alone(config.augment):
        one_view.augment.flip = False
    return cut.split(make_forward(one_view, model), params, batch_stats, learning, face_shape)


def _in_every_step(config: Any, model: Any, faces: np.ndarray, reason: str) -> Hoisted:
    words = f"computed in every step ({reason})"
    log.info("frozen part: %s", words)
    return without_cut(make_forward(config, model), faces, words)


def without_cut(whole: cut.Forward, faces: np.ndarray, words: str = "") -> Hoisted:
    """The whole forward pass, uint8 faces [N, H, W] or [N, H, W, 3] its input."""

    def from_faces(params: Any, batch_stats: Any, inputs: Any, key: Any = None) -> Any:
        return whole(params, batch_stats, inputs[0], key)

    def tail(params: Any, batch_stats: Any) -> tuple[Any, Any]:
        return params, batch_stats

    return Hoisted(from_faces, [faces], tail, False, words)


def behind_cut(found: cut.Cut, inputs: Sequence[np.ndarray | StoredArray], words: str = "") -> Hoisted:
    """What is behind the cut, what crosses it of every view of a face its inputs."""

    def from_crossing(params: Any, batch_stats: Any, inputs: Any, key: Any = None) -> Any:
        plain, mirrored = inputs[: len(found.crossing)], inputs[len(found.crossing) :]
        if key is None:
            return found.evaluate(params, batch_stats, plain), batch_stats
        if mirrored:
            flipped = preprocessing.flipped(jax.random.split(key)[1], len(plain[0]))
            plain = [
                jnp.where(flipped.reshape(-1, *[1] * (a.ndim - 1)), b, a)
                for a, b in zip(plain, mirrored, strict=True)
            ]
        return found.downstream(params, batch_stats, plain, key)

    return Hoisted(from_crossing, inputs, found.tail, True, words)


def _features(
    config: Any,
    found: cut.Cut,
    size: int,
    params: Any,
    batch_stats: Any,
    views: Sequence[tuple[np.ndarray, str]],
) -> list[np.ndarray | StoredArray]:
    """What crosses, of every view of the faces, one after the other; `views` come with their hashes."""
    scaling = preprocessing.resolve_scaling(config.data.scaling, config.backbone)
    words = f"{size} {scaling} {config.compute_dtype}"
    upstream = functools.partial(compilation.jit(found.upstream), params, batch_stats)
    keys = [features.make_key(found, params, batch_stats, hashed, words) for _, hashed in views]
    arrays: list[np.ndarray | StoredArray] = []
    for (view, _), key in zip(views, keys, strict=True):
        arrays += features.compute(
            upstream,
            view,
            key,
            batch_size=min(_EXTRACTED_AT_ONCE, len(view)),
            max_gb=config.features.max_gb,
            memory_gb=config.features.memory_gb / len(views),
            beside=[other for other in keys if other != key],
        )
    return arrays
