"""fer_jax as a contender: its functions, called as a run calls them but for one piece of the cell.

Extraction is a loop of its own over the cut's upstream half. Features go to one file, with a checksum a batch
where a run has one a row; no room is set aside beforehand, and no record is kept of what is done. (Evaluation
is in batches of the work's size, where a run's are of `eval_batch_size`.)
"""

import functools
import os
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.work import (
    CLASSES,
    EPOCHS,
    IMAGES,
    PREDICTING,
    TRAIN_IMAGES,
    Run,
    Work,
    he_normal,
    jax_peak_memory,
    random_crops,
    repeated,
)
from configs import default
from fer_jax import (
    compilation,
    cut,
    epochs,
    features,
    forward,
    initialisation,
    models,
    predictor,
    runs,
    saved_model,
    train,
)
from fer_jax.data import faces, preprocessing
from fer_jax.data.dataset import SIDE
from fer_jax.models.classifier import AUTO_POOLING

LAYOUT = "NHWC"
peak_memory = jax_peak_memory
_ROWS = 1024  # faces or features that steps draw their batches from


def describe() -> dict[str, str]:
    """Device and versions in words."""
    import flax

    return {
        "device": jax.devices()[0].device_kind,
        "versions": f"jax {jax.__version__}, flax {flax.__version__}",
    }


def variants(work: Work) -> dict[str, Run]:
    """One way each: what a run does."""
    if work.phase == "matmul":
        return {"jit": _matmul(work)}
    if work.phase == "forward":
        return {"jit": _forward(work)}
    if work.phase in PREDICTING:
        return {"jit": _prediction(work)}
    return _Classifier(work).variants()


def _matmul(work: Work) -> Run:
    side = (work.image_size, work.image_size)
    a = jax.random.normal(jax.random.key(0), side).astype(work.dtype)
    return repeated(functools.partial(compilation.jit(jnp.matmul), a, a), jax.block_until_ready)


def _forward(work: Work) -> Run:
    module = models.build(work.backbone, alpha=work.alpha, image_size=work.image_size)
    shape = (work.batch_size, work.image_size, work.image_size, 3)
    images = jax.random.uniform(jax.random.key(1), shape).astype(work.dtype)
    variables = jax.tree.map(lambda x: x.astype(work.dtype), _filled(models.abstract_variables(module)))
    return repeated(
        functools.partial(compilation.jit(module.apply), variables, images), jax.block_until_ready
    )


def _prediction(work: Work) -> Run:
    """With a model for grey 48x48 faces, as a run leaves it."""
    scaling, pooling = preprocessing.AUTO_SCALING[work.backbone], AUTO_POOLING[work.backbone]
    names = tuple(f"class {i}" for i in range(CLASSES))
    spec = saved_model.Spec(
        work.backbone, work.alpha, work.image_size, pooling, True, (), scaling, names, SIDE, 1, {}
    )
    variables = _filled(spec.abstract_variables())
    model = predictor.Predictor(saved_model.SavedModel(spec, variables, ""))
    crops = random_crops(work)
    if work.phase == "predict":
        return repeated(functools.partial(model.probabilities, crops, work.batch_size), np.asarray)
    face = Image.fromarray(faces.draw(40)[0][3]).resize((192, 192))
    photo = np.full((480, 640), 110, np.uint8)
    photo[144:336, 224:416] = np.asarray(face)
    photos = [photo] * work.batch_size

    def check(predictions: Any) -> None:
        assert all(len(prediction.faces) == 1 for prediction in predictions)

    return repeated(functools.partial(model.predict, photos, batch_size=work.batch_size), check)


def _filled(shapes: Any) -> Any:
    """Arrays for a tree of shapes: kernels that keep activations at their scale, as in the peers."""
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: Any) -> jax.Array:
        if "kernel" in path[-1].key:
            return jnp.asarray(he_normal(rng, leaf.shape))
        return jnp.full(leaf.shape, path[-1].key in ("gamma", "moving_variance"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def configuration(work: Work) -> Any:
    """The configuration of a run that does the work: a random backbone, frozen as the work says."""
    config = default.get_config()
    config.update(backbone=work.backbone, alpha=work.alpha, image_size=work.image_size, epochs=EPOCHS)
    config.init = "scratch" if work.phase == "full_step" else "random"
    config.batch_size = config.eval_batch_size = work.batch_size
    config.compute_dtype = work.dtype
    return config


class _Classifier:
    """Backbone and head, cut behind the frozen part where the phase says so."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._config = config = configuration(work)
        init = initialisation.choose(config)
        self._model, self._learning = initialisation.build_classifier(config, init, CLASSES)
        shapes = jax.eval_shape(lambda: initialisation.initial_variables(config, init, self._model))
        self._variables = _filled(shapes)
        self._rng = np.random.default_rng(1)
        self._faces = self._rng.integers(0, 256, (_ROWS, 48, 48), np.uint8)
        self._forward = forward.make_forward(config, self._model)
        self._cut = None
        if work.phase not in ("full_step", "uncut_step"):
            self._cut, reason = cut.split(self._forward, **self._variables, learning=self._learning)
            assert self._cut, reason

    def variants(self) -> dict[str, Run]:
        if self._work.phase == "extraction":
            return {"jit, to disk": self._extraction()}
        return {"jit": self._evaluation() if self._work.phase == "evaluate" else self._steps()}

    def _hoisted(self) -> forward.Hoisted:
        """What a run gets of `forward.hoist_frozen_part`, but features of random values."""
        found = self._cut
        if not found:
            return forward.without_cut(self._forward, self._faces)
        shapes = [((_ROWS, *value.shape), value.dtype) for value in found.crossing]
        arrays = [abs(self._rng.standard_normal(s, np.float32)).astype(dtype) for s, dtype in shapes]
        if IMAGES * found.bytes_per_image > self._config.features.memory_gb * 1e9:  # as a run has them then
            arrays = [_mapped(array) for array in arrays]
        return forward.behind_cut(found, arrays)

    def _placed(self) -> tuple[epochs.Device, epochs.TrainState]:
        """A run's device and the state that it starts with."""
        labels = self._rng.integers(0, CLASSES, _ROWS)
        lanes, weights = [runs.Lane(0, 1e-4)], np.ones(CLASSES, np.float32)
        learning, hoisted = self._learning, self._hoisted()
        return train.place(
            self._config, self._model, self._variables, learning, hoisted, labels, weights, lanes
        )

    def _steps(self) -> Run:
        """Training steps, in the device calls that an epoch makes."""
        (device, state), size = self._placed(), self._work.batch_size
        metrics = epochs.empty_metrics(1)
        epoch = TRAIN_IMAGES // size
        orders = [self._rng.permutation(_ROWS) for _ in range(-(-epoch * size // _ROWS))]
        rows = np.concatenate(orders)[None, : epoch * size]

        def run(batches: int) -> None:
            nonlocal state, metrics
            while batches:
                first = max(0, epoch - batches)
                for after in device.train(state, metrics, rows, first, size):
                    state, metrics, _ = after  # a device call, which has ended
                batches -= epoch - first

        return run

    def _evaluation(self) -> Run:
        """An evaluation's device calls."""
        (device, state), size = self._placed(), self._work.batch_size

        def run(batches: int) -> None:
            device.evaluate(state, np.resize(np.arange(_ROWS), batches * size), size, "evaluate")

        return run

    def _extraction(self) -> Run:
        assert self._cut
        variables = self._variables["params"], self._variables["batch_stats"]
        upstream = functools.partial(compilation.jit(self._cut.upstream), *variables)
        size = self._work.batch_size
        at_once = max(1, features.CHUNK_ROWS // size)  # dispatched before the first is fetched

        def run(batches: int) -> None:
            with tempfile.TemporaryFile() as file:
                for start in range(0, batches, at_once):
                    chunk = range(start, min(start + at_once, batches))
                    places = [np.arange(i * size, (i + 1) * size) % _ROWS for i in chunk]
                    crossing = [upstream(jax.device_put(self._faces[rows])) for rows in places]
                    for array in jax.tree.leaves(jax.device_get(crossing)):
                        zlib.crc32(array)
                        file.write(array)

        return run


def _mapped(array: np.ndarray) -> np.memmap:
    with tempfile.NamedTemporaryFile() as file:
        plain = array if array.dtype.kind == "f" else array.view(f"u{array.itemsize}")
        plain.tofile(file)
        return np.memmap(file.name, array.dtype, "r", shape=array.shape)


def full_cell(work: Work) -> float:
    """Seconds of a whole run of the paper's cell on drawn faces, from configuration to results."""
    config = configuration(work)
    config.data.path, config.data.drawn_faces = "drawn", IMAGES
    with tempfile.TemporaryDirectory() as home:
        os.environ["FER_JAX_CACHE"] = home  # no features or programs of an earlier run
        start = time.perf_counter()
        train.train_and_evaluate(config, Path(home) / "run")
        return time.perf_counter() - start
