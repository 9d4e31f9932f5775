"""Where a run's weights come from, which layers learn, and the variables it starts with."""

import dataclasses
import logging
import math
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

import weights_conversion
from fer_jax import cache, compilation, freezing, models
from fer_jax.data import preprocessing
from fer_jax.errors import InputError
from fer_jax.models.classifier import Classifier, Head, resolve_pooling

log = logging.getLogger(__name__)

VARIABLES = ("params", "batch_stats")
INITS = ("auto", "pretrained", "random", "scratch")
_LAST = 4  # freeze.last of configs/default.py


@dataclasses.dataclass(frozen=True)
class Init:
    """What `config.init` came to.

    Attributes:
      name: "pretrained", "random" or "scratch".
      reason: how it was chosen, for the log and the results.
      weights: metadata of the converted weights, None where the backbone is random.
      directory: where they lie.
    """

    name: str
    reason: str
    weights: dict[str, Any] | None = None
    directory: Path | None = None


def check(config: Any) -> None:
    """Raises InputError for a `config.init` that there is not, a pooling that the backbone has not, or
    `config.freeze` that contradicts itself."""
    if config.init not in INITS:
        raise InputError(f"init: unknown {config.init!r}, expected one of {', '.join(INITS)}")
    resolve_pooling(config.head.pooling, config.backbone)
    freezing.check_mode(config.freeze.mode)
    if any(config.freeze.layers) and config.freeze.mode != "layers":
        raise InputError(f"freeze.layers: goes with freeze.mode layers, got freeze.mode {config.freeze.mode}")


def check_ignored(config: Any) -> None:
    """Raises InputError for a field that would change nothing beside the others."""
    mode, scratch = config.freeze.mode, config.init == "scratch"
    if config.weights and config.init not in ("auto", "pretrained"):
        raise InputError(f"weights: goes with init auto or pretrained, got init {config.init}")
    if scratch and mode in ("all", "layers"):
        raise InputError(f"freeze.mode: {mode} goes with init auto, pretrained or random, got init scratch")
    if config.freeze.last != _LAST and (scratch or mode != "last"):
        got = "init scratch" if scratch else f"freeze.mode {mode}"
        raise InputError(f"freeze.last: goes with frozen layers and freeze.mode last, got {got}")


def learning_layers(config: Any, init: str) -> frozenset[str]:
    """Names of the backbone's layers that learn from an initialisation of this name: all from "scratch".

    Raises:
      InputError: `config.freeze` names layers that there are not.
    """
    names, freeze = models.layer_names(build_backbone(config)), config.freeze
    # A command line gives a tuple of literals, or all the names as one string.
    named = tuple(name for names in freeze.layers for name in str(names).split(",") if name)
    mode = "none" if init == "scratch" else freeze.mode
    return freezing.learning_layers(names, mode, last=freeze.last, layers=named)


def choose(config: Any) -> Init:
    """Resolves `config.init`, and logs what it chose; published weights that are wanted are downloaded.

    Raises:
      InputError: an unknown name; "pretrained" without weights; weights that do not fit the backbone.
    """
    check(config)
    directory = weights_directory(config)
    lacking = _supply(config, directory) if config.init in ("auto", "pretrained") else "not wanted"
    if not lacking:
        metadata = weights_conversion.load_metadata(directory)
        weights_conversion.check_fits(metadata, config.backbone, config.alpha)
        reason = weights_conversion.describe(metadata)
        result = Init("pretrained", reason, metadata, directory)
    elif config.init == "pretrained" or (config.init == "auto" and config.weights):
        raise InputError(f"init {config.init}: {lacking}")
    elif config.init == "auto":
        result = Init("scratch", f"auto: {lacking}; so nothing is frozen")
        log.warning(
            "NOTE: no pretrained weights can be had, so the whole network is trained from scratch; with "
            "--config.init=pretrained the run would end with an error instead"
        )
    else:
        frozen = "frozen like pretrained" if config.init == "random" else "nothing frozen"
        result = Init(config.init, f"random weights of seed {config.init_seed}, {frozen}")
    log.info("init: %s (%s)", result.name, result.reason)
    return result


def _supply(config: Any, directory: Path) -> str:
    """Sees to it that there are weights; returns why there are none, or nothing.

    Those of a directory that the user named are the user's own: nothing is downloaded there.
    """
    if os.path.exists(directory):
        return ""
    if config.weights:
        command = weights_conversion.download_command(config.backbone, config.alpha, directory)
        return (
            f"no converted weights in {directory}; make them with {command} "
            "(or --input=FILE in place of --download)"
        )
    from weights_conversion import convert, sources

    licence = convert.LICENCES[config.backbone]
    try:
        source = sources.published(config.backbone, config.alpha)
        log.info("weights: none in %s; the published %s, licence: %s", directory, source.name, licence)
        file = convert.fetch(config.backbone, config.alpha)
    except InputError as error:
        return f"no converted weights in {directory}, and {error}"
    try:
        convert.convert(config.backbone, file, directory, alpha=config.alpha)
    except InputError:
        if not directory.exists():  # else another run, started at the same time, was quicker
            raise
    return ""


def weights_directory(config: Any) -> Path:
    """`config.weights`, or by default weights/openface, weights/mobilenet_0.75, ..."""
    return Path(
        config.weights or f"weights/{weights_conversion.directory_name(config.backbone, config.alpha)}"
    )


def build_backbone(config: Any) -> Any:
    """The backbone that the configuration names, nothing in it learning."""
    return models.build(config.backbone, alpha=config.alpha, image_size=config.image_size or None)


def build_classifier(config: Any, init: Init, classes: int) -> tuple[Classifier, frozenset[str]]:
    """The model of a run and the names of the backbone's layers that learn."""
    learning = learning_layers(config, init.name)
    head = Head(
        classes,
        pooling=resolve_pooling(config.head.pooling, config.backbone),
        batch_norm=config.head.batch_norm,
        hidden=tuple(units for units in config.head.hidden if units),
        dropout=config.head.dropout,
    )
    return Classifier(build_backbone(config).clone(learning=learning), head), learning


def initial_variables(config: Any, init: Init, model: Classifier) -> Any:
    """{"params", "batch_stats"}: the backbone from weights or `init_seed`, the head from `seed`."""
    if init.directory:
        backbone = weights_conversion.load(init.directory)
    else:
        backbone = random_variables(models.abstract_variables(model.backbone), config.init_seed, "backbone")
    parts = {collection: {"backbone": backbone.get(collection, {})} for collection in VARIABLES}
    return with_head(jax.device_put(parts), model, config.seed)


def with_head(variables: Any, model: Classifier, seed: int) -> Any:
    """`variables` with a fresh head of this seed in place of theirs, if they have one."""
    head = random_variables(abstract_head(model), seed, "head")
    return {
        collection: {"backbone": variables[collection]["backbone"], "head": head.get(collection, {})}
        for collection in VARIABLES
    }


def abstract_head(model: Classifier) -> Any:
    """The head's variables as a tree of `jax.ShapeDtypeStruct`; nothing is computed."""
    last = models.trace_layers(model.backbone)[-1]
    return models.variables_for(model.head, jax.ShapeDtypeStruct((1, *last.output_shape), jnp.float32))


def random_variables(shapes: Any, seed: int, part: str) -> Any:
    """Variables of these shapes as Keras initialises them: glorot-uniform kernels, else zeros and ones.

    By NumPy, tensor by tensor: a seed gives the same weights on every device and with every version of JAX,
    and nothing is compiled, which took 11 s for OpenFace.

    Args:
      shapes: {"params": ..., "batch_stats": ...} of arrays or their shapes.
      part: "backbone" or "head": the same seed gives different weights to either.
    """

    def fill(path: Any, leaf: Any) -> np.ndarray:
        keys = [key.key for key in path]
        if not keys[-1].endswith("kernel"):
            return np.full(leaf.shape, keys[-1] in ("gamma", "moving_variance"), leaf.dtype)
        # keras/src/initializers/random_initializers.py, GlorotUniform and compute_fans.
        fans = math.prod(leaf.shape[:-2]) * (leaf.shape[-2] + leaf.shape[-1])
        limit = np.float32(math.sqrt(6 / fans))
        rng = np.random.default_rng((seed, zlib.crc32("/".join([part, *keys]).encode())))
        return rng.random(leaf.shape, np.float32) * (2 * limit) - limit

    return jax.tree_util.tree_map_with_path(fill, shapes)


def feature_rms(
    config: Any, init: Init, model: Classifier, variables: Any, faces: np.ndarray
) -> float | None:
    """Root mean square of a frozen random backbone's features of these faces; None for other inits.

    Frozen with random weights, a deep network can shrink its features until every face looks the same.
    """
    if init.name != "random":
        return None
    scaling = preprocessing.resolve_scaling(config.data.scaling, config.backbone)
    backbone = {collection: tree["backbone"] for collection, tree in variables.items()}

    @compilation.jit
    def rms(faces: jax.Array) -> jax.Array:
        images = preprocessing.prepare(faces, model.backbone.image_size, scaling)
        features = model.backbone.apply(backbone, images)
        largest = jnp.abs(features).max()  # squares of 1e-20 would underflow
        return largest * jnp.sqrt(jnp.mean(jnp.square(features / jnp.maximum(largest, 1e-37))))

    # Another seed of the same random backbone asks for the same number: tracing and running it take seconds.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    arrays = flatten_dict(backbone, sep="/") | {"faces": faces}
    key = f"{model.backbone.clone(learning=frozenset())} {scaling} jax {jax.__version__} "
    key += f"{jax.default_backend()} {precision} {cache.arrays_hash(arrays)}"
    found = cache.remembered(
        "feature_rms", key, ["rms"], lambda: {"rms": np.asarray(rms(jnp.asarray(faces)))}
    )
    value = float(found["rms"])
    log.info("random features: root mean square %.3g", value)
    return value
