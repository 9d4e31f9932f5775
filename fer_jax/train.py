"""One run: from a configuration to a trained model, its history and its results."""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import UnionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from fer_jax import (
    compilation,
    cut,
    epochs,
    freezing,
    initialisation,
    models,
    process,
    report,
    results,
    runs,
    saved_model,
)
from fer_jax.checkpoint import Checkpoints
from fer_jax.data import loading, preprocessing
from fer_jax.epochs import Data, Device, Lanes, Metrics, TrainState
from fer_jax.errors import InputError
from fer_jax.files import writing_to
from fer_jax.forward import Hoisted, hoist_frozen_part
from fer_jax.optimizer import balanced_class_weights, keras_adam

log = logging.getLogger(__name__)

# At the end of an epoch a checkpoint is written where the last one is so many seconds old: epochs may be
# shorter than the writing.
EPOCH_SAVE = 10.0


def train_and_evaluate(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Runs the experiment that `config` describes in `workdir`, or goes on with it there.

    Args:
      config: see configs/default.py.
      workdir: gets history.csv, results.json, model.safetensors, figures, tensorboard/, checkpoints/,
        run.json.

    Returns:
      What results.json holds.

    Raises:
      InputError: a field, the data or the weights cannot be used, or `workdir` holds another run or cannot be
        written.
    """
    check(config)
    compilation.check_device()
    workdir = Path(workdir)
    runs.check_start(workdir, config)
    if not (workdir / "run.json").exists():  # else a run that was begun with such a field could not go on
        initialisation.check_ignored(config)
    process.git_revision()  # kept: of the code that runs, whatever happens to the files meanwhile
    backbone = initialisation.build_backbone(config)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(models.trace_layers, backbone)  # kept: what follows finds it done
        dataset, split, dropped = loading.load(config.data, backbone.image_size)  # here, where Ctrl-C ends it
    initialisation.learning_layers(config, config.init)
    if config.drop_last and len(split.train) < config.batch_size:
        raise InputError(
            f"drop_last: {len(split.train)} training images make no batch of {config.batch_size}"
        )
    init = initialisation.choose(config)  # after all this, so that a slip downloads nothing
    model, learning = initialisation.build_classifier(config, init, len(dataset.class_names))
    run = runs.Run(config, init, dataset, split, dropped, model, learning)
    runs.check_workdir(workdir, run)

    variables = initialisation.initial_variables(config, init, model)
    freezing.log_partition(variables["params"], learning)
    hoisted = hoist_frozen_part(config, model, **variables, learning=learning, faces=dataset.images)
    if len(run.lanes) > 1 and not hoisted.cut:
        raise InputError(
            f"{len(run.lanes)} seeds and learning rates at once need a frozen part that is computed once an "
            f"image; here it is {hoisted.words}: choose one seed and one learning rate"
        )
    class_weights = np.ones(len(dataset.class_names), np.float32)
    if config.class_weight == "balanced":
        class_weights = balanced_class_weights(dataset.labels[split.train], len(class_weights))
    device, state = place(
        config, model, variables, learning, hoisted, dataset.labels, class_weights, run.lanes
    )
    frozen_part = hoisted.words
    del hoisted  # the device has its features, or reads them; a copy on the host would stay beside them

    with runs.claimed(workdir, run) as earlier, writing_to(workdir):
        state, history = fit(config, device, state, run.lanes, split, workdir)
        _, probabilities = device.evaluate(state, split.test, config.eval_batch_size, "test")
        save_model(workdir, run, variables, state, history)
        some = dataset.images[split.train[:128]]
        feature_rms = initialisation.feature_rms(config, init, model, variables, some)
        return results.write(workdir, run, frozen_part, feature_rms, history, probabilities, earlier)


def check(config: Any) -> None:
    """Raises InputError for most of the numbers and words that no run can use, before anything is read."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise InputError("JAX_ENABLE_X64: a run computes in float32, expected it unset")
    initialisation.build_backbone(config)
    initialisation.check(config)
    preprocessing.resolve_scaling(config.data.scaling, config.backbone)
    for name in ("epochs", "batch_size", "eval_batch_size", "seeds"):
        if config[name] < 1:
            raise InputError(f"{name}: expected at least 1, got {config[name]}")
    if config.seeds > 2**32:
        raise InputError(f"seeds: expected 1 to {2**32}, got {config.seeds}")
    for name, end in (("seed", 2**32 - config.seeds), ("init_seed", 2**32 - 1)):
        if not 0 <= config[name] <= end:
            raise InputError(f"{name}: expected 0 to {end}, got {config[name]}")
    rates = config.optimizer.learning_rate
    if not rates or not all(_is_number(rate) and 0 < rate < math.inf for rate in rates):
        raise InputError(f"optimizer.learning_rate: expected numbers above 0, got {rates}")
    if len({f"{rate:g}" for rate in rates}) < len(rates):  # as figures are named
        raise InputError(f"optimizer.learning_rate: the same number twice in {rates}")
    for name in ("beta_1", "beta_2"):
        if not 0 <= config.optimizer[name] < 1:
            raise InputError(f"optimizer.{name}: expected 0 to below 1, got {config.optimizer[name]}")
    if not config.checkpoint_minutes >= 0:
        raise InputError(f"checkpoint_minutes: expected at least 0, got {config.checkpoint_minutes}")
    if not 0 <= config.optimizer.epsilon < math.inf:
        raise InputError(f"optimizer.epsilon: expected at least 0, got {config.optimizer.epsilon}")
    if not 0 <= config.head.dropout < 1:
        raise InputError(f"head.dropout: expected 0 to below 1, got {config.head.dropout}")
    if not all(_is_number(units, int) and units >= 0 for units in config.head.hidden):
        raise InputError(f"head.hidden: expected whole numbers of at least 0, got {config.head.hidden}")
    if config.class_weight not in ("none", "balanced"):
        raise InputError(f"class_weight: unknown {config.class_weight!r}, expected none or balanced")
    if config.compute_dtype not in ("float32", "bfloat16"):
        raise InputError(f"compute_dtype: unknown {config.compute_dtype!r}, expected float32 or bfloat16")
    for name, value in config.augment.items():
        if not 0 <= value <= 1:
            raise InputError(f"augment.{name}: expected 0 to 1, got {value}")
    if not config.features.max_gb > 0:
        raise InputError(f"features.max_gb: expected a number above 0, got {config.features.max_gb}")
    if not config.features.memory_gb >= 0:
        raise InputError(f"features.memory_gb: expected at least 0, got {config.features.memory_gb}")


def _is_number(value: Any, kind: type | UnionType = int | float) -> bool:
    """Whether `value` is of a kind of numbers, which Python counts True among."""
    return isinstance(value, kind) and not isinstance(value, bool)


def place(
    config: Any,
    model: Any,
    variables: Any,
    learning: frozenset[str],
    hoisted: Hoisted,
    labels: np.ndarray,
    class_weights: np.ndarray,
    lanes: Sequence[runs.Lane],
) -> tuple[Device, TrainState]:
    """Puts data and programs on the device, and the state that every lane starts with.

    Args:
      variables: {"params", "batch_stats"} of the first lane.
      labels: int [N].
    """
    adam = {name: value for name, value in config.optimizer.items() if name != "learning_rate"}
    tails = [hoisted.tail(**initialisation.with_head(variables, model, lane.seed)) for lane in lanes]
    one_lane = tails[0][0]

    def make_optimizer(learning_rate: Any) -> Any:
        return freezing.partition(keras_adam(learning_rate, **adam), one_lane, learning)

    @jax.jit  # one program in place of one for each shape
    def first_state(tails: Any) -> TrainState:
        params, batch_stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tails)
        opt_state = jax.vmap(make_optimizer(0.0).init)(params)
        return TrainState(jnp.zeros(len(lanes), jnp.int32), params, batch_stats, opt_state)

    state = first_state(tails)
    device = Device(
        hoisted.forward,
        make_optimizer,
        class_weights,
        Data(hoisted.inputs, labels),
        Lanes(
            np.array([lane.seed for lane in lanes], np.uint32),
            np.array([lane.learning_rate for lane in lanes], np.float32),
        ),
        loops=epochs.loops_well(hoisted.forward, state, hoisted.inputs, config.batch_size),
        one_by_one=epochs.one_by_one(state),
    )
    return device, state


def save_model(
    workdir: Path,
    run: runs.Run,
    variables: Any,
    state: TrainState,
    history: list[report.History],
) -> None:
    """Writes the trained model; of several lanes that with the best validation accuracy at the end, diverged
    ones aside.

    Args:
      variables: {"params", "batch_stats"}, what the run started with: of what is frozen, what it ends with.
    """
    final = [rows[-1] for rows in history]
    lane = max(
        range(len(final)), key=lambda i: (math.isfinite(final[i]["val_loss"]), final[i]["val_accuracy"])
    )
    tails = jax.tree.map(lambda leaf: leaf[lane], {"params": state.params, "batch_stats": state.batch_stats})
    trained = {name: cut.merge(variables[name], tail) for name, tail in tails.items()}
    trained = jax.device_get(trained)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained)):
        log.warning("NOTE: the training diverged: weights are no numbers; %s is of no use", saved_model.FILE)
    for other, row in zip(run.lanes, final, strict=True) if len(final) > 1 else ():
        if not math.isfinite(row["val_loss"]):
            log.warning("NOTE: %s diverged: its accuracy is that of one class for every face", other.name)
    spec = results.model_spec(run, run.lanes[lane], final[lane])
    saved_model.save(workdir / saved_model.FILE, spec, trained)


@dataclasses.dataclass
class Progress:
    """How far a run is: `step` steps into `epoch`, after `seconds` of it; finished epochs' rows, by lane."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[report.History] = dataclasses.field(default_factory=list)

    def after_epoch(
        self, train: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray], seconds: float
    ) -> "Progress":
        """At the start of the next epoch, with a row of this one for every lane.

        Args:
          train, validation: {"loss", "accuracy"}, float [lanes] each.
        """
        columns = {
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "val_loss": validation["loss"],
            "val_accuracy": validation["accuracy"],
        }
        numbers = [
            {name: float(of[lane]) for name, of in columns.items()} for lane in range(len(self.history))
        ]
        rows = [{"epoch": self.epoch, **number, "seconds": seconds} for number in numbers]
        before = zip(self.history, rows, strict=True)
        return Progress(self.epoch + 1, history=[[*earlier, row] for earlier, row in before])


def fit(
    config: Any,
    device: Device,
    state: TrainState,
    lanes: Sequence[runs.Lane],
    split: Any,
    workdir: Path,
) -> tuple[TrainState, list[report.History]]:
    """Trains for `config.epochs`, from the last checkpoint in `workdir` where there is one.

    Epoch 0 is the evaluation before the first step, in inference mode.

    Returns:
      the last state, and for every lane a row an epoch.
    """
    checkpoints = Checkpoints(workdir / "checkpoints")
    metrics, progress = epochs.empty_metrics(len(lanes)), Progress(history=[[] for _ in lanes])
    saved = checkpoints.restore({"state": state, "metrics": metrics})
    if saved:
        state, metrics, progress = saved[0]["state"], saved[0]["metrics"], Progress(**saved[1])
        log.info("going on from epoch %d, step %d", progress.epoch, progress.step)
    board = SummaryWriter(str(workdir / "tensorboard"), purge_step=0)
    for epoch in range(progress.epoch):  # again: a kill may have come between a checkpoint and its events
        _add_events(board, lanes, [rows[epoch] for rows in progress.history])
    evaluate = functools.partial(device.evaluate, batch_size=config.eval_batch_size)

    while progress.epoch <= config.epochs:
        started = time.perf_counter() - progress.seconds
        if progress.epoch == 0:
            train, _ = evaluate(state, split.train, what="epoch 0, train")
        else:
            state, metrics = train_epoch(
                config, device, state, metrics, lanes, split.train, progress, checkpoints, started
            )
            train = epochs.values(metrics)
        validation, _ = evaluate(state, split.validation, what=f"epoch {progress.epoch}, validation")
        progress = progress.after_epoch(train, validation, time.perf_counter() - started)
        metrics = epochs.empty_metrics(len(lanes))
        if progress.epoch > config.epochs or checkpoints.age > min(
            60 * config.checkpoint_minutes, EPOCH_SAVE
        ):
            _save(checkpoints, state, metrics, progress)
        _record(workdir, board, lanes, progress.history)
    board.close()
    checkpoints.close()
    return state, progress.history


def train_epoch(
    config: Any,
    device: Device,
    state: TrainState,
    metrics: Metrics,
    lanes: Sequence[runs.Lane],
    train_rows: np.ndarray,
    progress: Progress,
    checkpoints: Checkpoints,
    started: float,
) -> tuple[TrainState, Metrics]:
    """One pass over the training images, in the order that seed and epoch give, from `progress.step` on.

    Long epochs are saved on the way, every `config.checkpoint_minutes`; `started` is when this one began.
    """
    size = config.batch_size
    generators = [np.random.default_rng((lane.seed, progress.epoch)) for lane in lanes]
    orders = np.stack([train_rows[rng.permutation(len(train_rows))] for rng in generators])
    if config.drop_last:
        orders = orders[:, : orders.shape[1] // size * size]
    count = orders.shape[1]
    bar = tqdm(
        total=count,
        initial=progress.step * size,
        desc=f"epoch {progress.epoch}",
        unit="img",
        leave=False,
    )
    with bar:
        calls = device.train(state, metrics, orders, progress.step, size)
        told = time.monotonic()
        for state, metrics, step in calls:
            if time.monotonic() - told > epochs.CALL_SECONDS / 2:  # a call may be one step: not after each
                means = {name: f"{value.mean():.3f}" for name, value in epochs.values(metrics).items()}
                bar.set_postfix(means, refresh=False)
                told = time.monotonic()
            bar.update(min(step * size, count) - bar.n)
            if step * size < count and checkpoints.age > 60 * config.checkpoint_minutes:
                seconds = time.perf_counter() - started
                now = dataclasses.replace(progress, step=step, seconds=seconds)
                _save(checkpoints, state, metrics, now)
    return state, metrics


def _save(checkpoints: Checkpoints, state: TrainState, metrics: Metrics, progress: Progress) -> None:
    checkpoints.save(int(state.step[0]), {"state": state, "metrics": metrics}, dataclasses.asdict(progress))


def _record(
    workdir: Path,
    board: SummaryWriter,
    lanes: Sequence[runs.Lane],
    history: list[report.History],
) -> None:
    results.write_history(workdir, lanes, history)
    rows = [rows[-1] for rows in history]
    _add_events(board, lanes, rows)
    board.flush()
    log.info(
        "epoch %2d: loss %.4f, accuracy %.4f; validation loss %.4f, accuracy %.4f; %.1f s%s",
        *(np.mean([row[name] for row in rows]) for name in report.HISTORY_COLUMNS),
        f" (means of {len(lanes)})" if len(lanes) > 1 else "",
    )


def _add_events(board: SummaryWriter, lanes: Sequence[runs.Lane], rows: report.History) -> None:
    for name in report.METRIC_COLUMNS:
        for lane, row in zip(lanes, rows, strict=True):
            tag = name.replace("_", "/") + (f"/{lane.name}" if len(lanes) > 1 else "")
            board.add_scalar(tag, row[name], row["epoch"])
