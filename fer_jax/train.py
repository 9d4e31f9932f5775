"""One run: from a configuration to a trained model, its history and its results."""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from tensorboardX import SummaryWriter
from tqdm import tqdm

from fer_jax import cut, features, freezing, initialisation, report, results
from fer_jax.checkpoint import Checkpoints
from fer_jax.data import loading, preprocessing
from fer_jax.errors import InputError
from fer_jax.optimizer import balanced_class_weights, categorical_crossentropy, keras_adam

log = logging.getLogger(__name__)

# (params, batch_stats, inputs [B, ...], key or None) -> (logits [B, classes], batch_stats)
Forward = Callable[..., tuple[jax.Array, Any]]


@flax.struct.dataclass
class TrainState:
    """What a step changes: int32 step, variables, optimizer state (no array for a frozen leaf)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


class Data:
    """What a step reads, a row an image: on the device, or memory-mapped where it is too large for that."""

    def __init__(self, inputs: Sequence[np.ndarray], labels: np.ndarray) -> None:
        self._mapped = any(isinstance(array, np.memmap) for array in inputs)
        self._arrays = (tuple(inputs), labels)
        if not self._mapped:
            self._arrays = jax.device_put(self._arrays)

    def batch(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """(inputs, labels) and the places of `rows` in them: the whole on the device, or the rows alone."""
        if not self._mapped:
            return self._arrays, rows
        order = np.argsort(rows, kind="stable")  # the map is read forwards
        gathered = jax.tree.map(lambda array: array[rows[order]], self._arrays)
        return gathered, np.argsort(order)


@flax.struct.dataclass
class Metrics(clu_metrics.Collection):
    """Means over images, as Keras reports an epoch: loss in nats, accuracy as a fraction."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("correct")  # type: ignore[valid-type]


def train_and_evaluate(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Runs the experiment that `config` describes in `workdir`, or goes on with it there.

    Args:
      config: see configs/default.py.
      workdir: gets history.csv, results.json, figures, tensorboard/, checkpoints/ and run.json.

    Returns:
      What results.json holds.

    Raises:
      InputError: a field, the data or the weights cannot be used, or `workdir` holds another run.
    """
    check(config)
    init = initialisation.choose(config)
    dataset, split, dropped = loading.load(config.data)
    if config.drop_last and len(split.train) < config.batch_size:
        raise InputError(
            f"drop_last: {len(split.train)} training images make no batch of {config.batch_size}"
        )
    model, learning = initialisation.build_classifier(config, init, len(dataset.class_names))
    run = results.Run(config, init, dataset, split, dropped, model, learning)
    workdir = results.claim(Path(workdir), run)

    variables = initialisation.initial_variables(config, init, model)
    feature_rms = initialisation.feature_rms(config, init, model, variables, dataset.images[split.train])
    optimizer = freezing.partition(keras_adam(**config.optimizer), variables["params"], learning)
    state = TrainState(jnp.zeros((), jnp.int32), **variables, opt_state=optimizer.init(variables["params"]))
    freezing.log_partition(variables["params"], learning)

    class_weights = np.ones(len(dataset.class_names), np.float32)
    if config.class_weight == "balanced":
        class_weights = balanced_class_weights(dataset.labels[split.train], len(class_weights))
    whole = make_forward(config, model)
    forward, inputs, frozen_part = hoist_frozen_part(config, whole, variables, learning, dataset)
    train_step = make_train_step(forward, optimizer, class_weights, config.seed)
    evaluate = make_evaluate(forward, config.eval_batch_size)
    data = Data(inputs, dataset.labels)

    state, history = fit(config, state, train_step, evaluate, data, split, workdir)
    _, probabilities = evaluate(state, data, split.test, "test")
    return results.write(workdir, run, frozen_part, feature_rms, history, probabilities)


def check(config: Any) -> None:
    """Raises InputError for a number or a word that no run can use, before anything is read."""
    initialisation.build_backbone(config)
    preprocessing.resolve_scaling(config.data.scaling, config.backbone)
    for name in ("epochs", "batch_size", "eval_batch_size"):
        if config[name] < 1:
            raise InputError(f"{name}: expected at least 1, got {config[name]}")
    for name in ("seed", "init_seed"):
        if config[name] < 0:
            raise InputError(f"{name}: expected at least 0, got {config[name]}")
    if not 0 < config.optimizer.learning_rate < math.inf:
        raise InputError(f"optimizer.learning_rate: expected above 0, got {config.optimizer.learning_rate}")
    if not 0 <= config.head.dropout < 1:
        raise InputError(f"head.dropout: expected 0 to below 1, got {config.head.dropout}")
    if min(config.head.hidden, default=0) < 0:
        raise InputError(f"head.hidden: expected units of at least 0, got {config.head.hidden}")
    if config.class_weight not in ("none", "balanced"):
        raise InputError(f"class_weight: unknown {config.class_weight!r}, expected none or balanced")
    for name, value in config.augment.items():
        if not 0 <= value <= 1:
            raise InputError(f"augment.{name}: expected 0 to 1, got {value}")


def make_forward(config: Any, model: Any) -> Forward:
    """forward(params, batch_stats, faces uint8 [B, 48, 48], key=None) -> (logits, batch_stats).

    With a key in training mode: augmentation, dropout, the batch's statistics in the layers that learn.
    """
    size = model.backbone.image_size
    scaling = preprocessing.resolve_scaling(config.data.scaling, config.backbone)

    def forward(params: Any, batch_stats: Any, faces: jax.Array, key: Any = None) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        if key is None:
            return model.apply(variables, preprocessing.prepare(faces, size, scaling)), batch_stats
        dropout_key, augment_key = jax.random.split(key)
        if preprocessing.augments(config.augment):
            faces = preprocessing.augmented(augment_key, faces, config.augment)
        images = preprocessing.prepare(faces, size, scaling)
        logits, updated = model.apply(
            variables, images, train=True, rngs={"dropout": dropout_key}, mutable=["batch_stats"]
        )
        return logits, {part: updated["batch_stats"].get(part, {}) for part in batch_stats}

    return forward


def hoist_frozen_part(
    config: Any, forward: Forward, variables: Any, learning: frozenset[str], dataset: Any
) -> tuple[Forward, Sequence[np.ndarray], str]:
    """Computes what is the same in every epoch once an image, where that can be.

    Returns:
      the forward pass from what crosses the cut on, and the arrays [N, ...] that cross; or, without a
      cut, a forward pass from the faces, and the faces; and which of the two, in words.
    """

    def whole(params: Any, batch_stats: Any, inputs: Any, key: Any = None) -> tuple[jax.Array, Any]:
        return forward(params, batch_stats, inputs[0], key)

    found, reason = (None, "features.reuse is off")
    if config.features.reuse:
        found, reason = cut.split(forward, **variables, learning=learning)
    if found is None:
        words = f"computed in every step ({reason})"
        log.info("frozen part: %s", words)
        return whole, [dataset.images], words
    crossing = ", ".join(f"{value.layer} {value.shape}" for value in found.crossing)
    words = f"computed once an image, up to {crossing}: {found.bytes_per_image:,} bytes each"
    log.info("frozen part: %s", words)
    size, scaling = config.image_size, preprocessing.resolve_scaling(config.data.scaling, config.backbone)
    arrays = features.compute(
        functools.partial(jax.jit(found.upstream), variables["params"], variables["batch_stats"]),
        dataset.images,
        features.make_key(
            found, **variables, faces=dataset.images, preprocessing=f"{size} {scaling} float32"
        ),
        batch_size=config.batch_size,
        max_gb=config.features.max_gb,
        memory_gb=config.features.memory_gb,
    )

    def rest(params: Any, batch_stats: Any, inputs: Any, key: Any = None) -> tuple[jax.Array, Any]:
        if key is None:
            return found.evaluate(params, batch_stats, inputs), batch_stats
        return found.downstream(params, batch_stats, inputs, key)

    return rest, arrays, words


def make_train_step(
    forward: Forward, optimizer: optax.GradientTransformation, class_weights: np.ndarray, seed: int
) -> Callable[..., tuple[TrainState, Metrics]]:
    """train_step(state, metrics, (inputs, labels), rows [B]) -> (state, metrics), jit-compiled.

    State and metrics are donated: the arrays passed in are gone afterwards.
    """

    def train_step(
        state: TrainState, metrics: Metrics, data: Any, rows: jax.Array
    ) -> tuple[TrainState, Metrics]:
        inputs, labels = jax.tree.map(lambda array: array[rows], data)
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            logits, batch_stats = forward(params, state.batch_stats, inputs, key)
            losses = jnp.asarray(class_weights)[labels] * categorical_crossentropy(logits, labels)
            return losses.mean(), (losses, logits, batch_stats)

        gradients, (losses, logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step_metrics = Metrics.single_from_model_output(loss=losses, correct=logits.argmax(-1) == labels)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics.merge(step_metrics)

    return jax.jit(train_step, donate_argnums=(0, 1))


def make_evaluate(forward: Forward, batch_size: int) -> Callable[..., tuple[Any, np.ndarray]]:
    """evaluate(state, data, rows, what) -> ({"loss", "accuracy"}, probabilities [len(rows), classes]).

    Inference mode over every row; the last batch is filled up, and what fills it is masked out.
    """

    @jax.jit
    def step(
        params: Any, batch_stats: Any, data: Any, rows: jax.Array, mask: jax.Array
    ) -> tuple[Metrics, jax.Array]:
        inputs, labels = jax.tree.map(lambda array: array[rows], data)
        logits, _ = forward(params, batch_stats, inputs)
        metrics = Metrics.single_from_model_output(
            loss=categorical_crossentropy(logits, labels), correct=logits.argmax(-1) == labels, mask=mask
        )
        return metrics, jax.nn.softmax(logits)

    def evaluate(state: TrainState, data: Data, rows: np.ndarray, what: str) -> tuple[Any, np.ndarray]:
        metrics, probabilities = Metrics.empty(), []
        with tqdm(total=len(rows), desc=what, unit="img", leave=False) as bar:
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                filled = np.resize(batch, batch_size)
                mask = np.arange(batch_size) < len(batch)
                arrays, places = data.batch(filled)
                batch_metrics, batch_probabilities = step(
                    state.params, state.batch_stats, arrays, places, mask
                )
                metrics = metrics.merge(batch_metrics)
                probabilities.append(np.asarray(batch_probabilities)[: len(batch)])
                bar.update(len(batch))
        return _values(metrics), np.concatenate(probabilities)

    return evaluate


@dataclasses.dataclass
class Progress:
    """How far a run is: `step` steps into `epoch`, after `seconds` of it; the rows of finished epochs."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


def fit(
    config: Any,
    state: TrainState,
    train_step: Callable[..., tuple[TrainState, Metrics]],
    evaluate: Callable[..., tuple[Any, np.ndarray]],
    data: Data,
    split: Any,
    workdir: Path,
) -> tuple[TrainState, list[dict[str, float]]]:
    """Trains for `config.epochs`, from the last checkpoint in `workdir` where there is one.

    Epoch 0 is the evaluation before the first step, in inference mode.

    Returns:
      the last state, and a row an epoch.
    """
    checkpoints = Checkpoints(workdir / "checkpoints")
    metrics, progress = Metrics.empty(), Progress()
    saved = checkpoints.restore({"state": state, "metrics": metrics})
    if saved:
        state, metrics, progress = saved[0]["state"], saved[0]["metrics"], Progress(**saved[1])
        log.info("going on from epoch %d, step %d", progress.epoch, progress.step)
    board = SummaryWriter(str(workdir / "tensorboard"), purge_step=progress.epoch)

    while progress.epoch <= config.epochs:
        started = time.perf_counter() - progress.seconds
        if progress.epoch == 0:
            train, _ = evaluate(state, data, split.train, "epoch 0, train")
        else:
            state, metrics = train_epoch(
                config, state, metrics, train_step, data, split.train, progress, checkpoints, started
            )
            train = _values(metrics)
        validation, _ = evaluate(state, data, split.validation, f"epoch {progress.epoch}, validation")
        row = {
            "epoch": progress.epoch,
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "val_loss": validation["loss"],
            "val_accuracy": validation["accuracy"],
            "seconds": time.perf_counter() - started,
        }
        metrics, progress = Metrics.empty(), Progress(progress.epoch + 1, history=[*progress.history, row])
        _save(checkpoints, state, metrics, progress)
        _record(workdir, board, progress.history)
    board.close()
    checkpoints.close()
    return state, progress.history


def train_epoch(
    config: Any,
    state: TrainState,
    metrics: Metrics,
    train_step: Callable[..., tuple[TrainState, Metrics]],
    data: Data,
    train_rows: np.ndarray,
    progress: Progress,
    checkpoints: Checkpoints,
    started: float,
) -> tuple[TrainState, Metrics]:
    """One pass over the training images, in the order that seed and epoch give, from `progress.step` on.

    Long epochs are saved on the way, every `config.checkpoint_minutes`; `started` is when this one began.
    """
    size = config.batch_size
    order = train_rows[np.random.default_rng((config.seed, progress.epoch)).permutation(len(train_rows))]
    steps = len(order) // size if config.drop_last else -(-len(order) // size)
    last_save = time.perf_counter()
    bar = tqdm(
        total=len(order),
        initial=progress.step * size,
        desc=f"epoch {progress.epoch}",
        unit="img",
        leave=False,
    )
    with bar:
        for step in range(progress.step, steps):
            rows = order[step * size : (step + 1) * size]
            state, metrics = train_step(state, metrics, *data.batch(rows))
            if step % 10 == 9:  # wait for the device, so that the rate is true
                values = _values(metrics)
                bar.set_postfix(loss=f"{values['loss']:.3f}", accuracy=f"{values['accuracy']:.3f}")
            bar.update(len(rows))
            if step + 1 < steps and time.perf_counter() - last_save > 60 * config.checkpoint_minutes:
                seconds = time.perf_counter() - started
                now = dataclasses.replace(progress, step=step + 1, seconds=seconds)
                _save(checkpoints, state, metrics, now)
                last_save = time.perf_counter()
    return state, metrics


def _save(checkpoints: Checkpoints, state: TrainState, metrics: Metrics, progress: Progress) -> None:
    checkpoints.save(int(state.step), {"state": state, "metrics": metrics}, dataclasses.asdict(progress))


def _values(metrics: Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute().items()}


def _record(workdir: Path, board: SummaryWriter, history: list[dict[str, float]]) -> None:
    row = history[-1]
    report.write_history_csv(workdir / "history.csv", history)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        board.add_scalar(name.replace("_", "/"), row[name], row["epoch"])
    board.flush()
    log.info(
        "epoch %2d: loss %.4f, accuracy %.4f; validation loss %.4f, accuracy %.4f; %.1f s",
        *(row[name] for name in report.HISTORY_COLUMNS),
    )
