"""Steps and evaluations over data on the device: many in one call, for several lanes at once.

A lane is one training of the same model on the same images: its own seed, its own learning rate. Whatever
belongs to a lane (variables, optimizer state, metrics, order of the images) has a leading axis of lanes.
"""

import collections
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from jax import lax
from tqdm import tqdm

from fer_jax import compilation, process
from fer_jax.optimizer import categorical_crossentropy

# (params, batch_stats, inputs, a tuple of [B, ...], key or None) -> (logits [B, classes], batch_stats)
LaneForward = Callable[..., tuple[jax.Array, Any]]

CALL_SECONDS = 2.0  # how long a device call lasts where an epoch is longer: the progress bar moves after each
LANE_BYTES = 64e6  # of a lane's state at most, where lanes are trained one by one
CHUNK_BYTES = 128e6  # of memory-mapped inputs: so much is in use, and as much being read


@flax.struct.dataclass
class TrainState:
    """What a step changes: int32 step, variables, optimizer state (no array for a frozen leaf)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


@flax.struct.dataclass
class Lanes:
    """What lanes differ in: `seed` uint32 [L] (order, dropout, augmentation), `learning_rate` float32 [L]."""

    seed: jax.Array | np.ndarray
    learning_rate: jax.Array | np.ndarray

    def __len__(self) -> int:
        return len(self.seed)


@flax.struct.dataclass
class Metrics(clu_metrics.Collection):
    """Means over images, as Keras reports an epoch: loss in nats, accuracy as a fraction."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("correct")  # type: ignore[valid-type]


@functools.partial(jax.jit, static_argnums=0)
def empty_metrics(lanes: int) -> Metrics:
    """Metrics of no image, float32 [lanes] each."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *x.shape)), Metrics.empty())


def values(metrics: Metrics) -> dict[str, np.ndarray]:
    """{"loss", "accuracy"}, float [L] each, fetched from the device."""
    return jax.device_get(jax.vmap(Metrics.compute)(metrics))


class Data:
    """What steps read, a row an image: on the device, or on the disk where it is too large for that.

    Args:
      inputs: arrays [N, ...], a tuple of which `LaneForward` gets the rows of a batch; those that are no
        plain NumPy arrays (`features.compute`) stay where they are.
      labels: int [N].
    """

    def __init__(self, inputs: Sequence[Any], labels: np.ndarray) -> None:
        self.mapped = not all(type(array) is np.ndarray for array in inputs)
        self.row_bytes = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in inputs)
        self._arrays = (tuple(inputs), labels)
        if not self.mapped:
            self._arrays = jax.device_put(self._arrays)

    def on_device(self, rows: np.ndarray) -> tuple[Any, jax.Array]:
        """(inputs, labels) on the device, and the places in them of `rows`, int [lanes, n]: int32, as many.

        All of them where they are resident; of memory-mapped inputs the rows alone. Negative rows, which
        stand for no image, stay negative.
        """
        if not self.mapped:
            return self._arrays, jax.device_put(rows.astype(np.int32))
        distinct, places = np.unique(rows, return_inverse=True)  # in order: the map is read forwards
        # Lanes may share rows; one size, however many they share, is one program.
        distinct = np.pad(distinct, (0, rows.size - len(distinct)), mode="edge")
        gathered = jax.tree.map(lambda array: array[distinct], self._arrays)
        places = np.where(rows < 0, -1, places.reshape(rows.shape))
        return jax.device_put((gathered, places.astype(np.int32)))


def make_train_steps(
    forward: LaneForward,
    make_optimizer: Callable[[Any], optax.GradientTransformation],
    class_weights: np.ndarray,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """train_steps(state, metrics, lanes, (inputs, labels), rows, start, steps, batch_size=).

    Trains `steps` batches of `batch_size` of `rows`, int32 [L, n], from the batch numbered `start` on, in
    one device call, and returns state and metrics. State and metrics are donated: the arrays passed in are
    gone afterwards. `start` and `steps` are int32 scalars; `steps` None is one step without a loop.

    Args:
      forward: of one lane.
      make_optimizer: from a learning rate, a float32 scalar.
      class_weights: float32 [classes], by which the loss of every image is multiplied.
    """

    def step(
        state: TrainState, metrics: Metrics, lane: Lanes, rows: jax.Array, data: Any
    ) -> tuple[TrainState, Metrics]:
        inputs, labels = jax.tree.map(lambda array: array[rows], data)
        key = jax.random.fold_in(jax.random.key(lane.seed), state.step)

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            logits, batch_stats = forward(params, state.batch_stats, inputs, key)
            losses = jnp.asarray(class_weights)[labels] * categorical_crossentropy(logits, labels)
            return losses.mean(), (losses, logits, batch_stats)

        gradients, (losses, logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
        optimizer = make_optimizer(lane.learning_rate)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step_metrics = Metrics.single_from_model_output(loss=losses, correct=logits.argmax(-1) == labels)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics.merge(step_metrics)

    @functools.partial(compilation.jit, donate_argnums=(0, 1), static_argnames="batch_size")
    def train_steps(
        state: TrainState,
        metrics: Metrics,
        lanes: Lanes,
        data: Any,
        rows: jax.Array,
        start: jax.Array,
        steps: jax.Array | None,
        *,
        batch_size: int,
    ) -> tuple[TrainState, Metrics]:
        every_lane = _over_lanes(step, len(lanes), shared=(4,))

        def one(number: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            batch = lax.dynamic_slice_in_dim(rows, number * batch_size, batch_size, axis=1)
            return every_lane(*carry, lanes, batch, data)

        if steps is None:
            return one(start, (state, metrics))
        return lax.fori_loop(start, start + steps, one, (state, metrics))

    return train_steps


def make_evaluate_steps(forward: LaneForward) -> Callable[..., tuple[Metrics, jax.Array]]:
    """evaluate_steps(metrics, params, batch_stats, (inputs, labels), rows, start, steps, batch_size=).

    Inference mode, as `make_train_steps` for training, on `rows`, int32 [1, n], the same for all lanes;
    negative ones fill up the last batch and do not count. `metrics` are donated.

    Returns:
      metrics, and float32 [L, n, classes]: the probabilities of these steps' rows, zeros in other places.
    """

    def step(
        metrics: Metrics, params: Any, batch_stats: Any, data: Any, rows: jax.Array
    ) -> tuple[Metrics, jax.Array]:
        inputs, labels = jax.tree.map(lambda array: array[rows], data)
        logits, _ = forward(params, batch_stats, inputs)
        step_metrics = Metrics.single_from_model_output(
            loss=categorical_crossentropy(logits, labels), correct=logits.argmax(-1) == labels, mask=rows >= 0
        )
        return metrics.merge(step_metrics), jax.nn.softmax(logits)

    @functools.partial(compilation.jit, donate_argnums=0, static_argnames="batch_size")
    def evaluate_steps(
        metrics: Metrics,
        params: Any,
        batch_stats: Any,
        data: Any,
        rows: jax.Array,
        start: jax.Array,
        steps: jax.Array | None,
        *,
        batch_size: int,
    ) -> tuple[Metrics, jax.Array]:
        lanes = len(metrics.loss.total)
        every_lane = _over_lanes(step, lanes, shared=(3, 4))

        def one(number: Any, results: tuple[Metrics, jax.Array]) -> tuple[Metrics, jax.Array]:
            at = number * batch_size
            batch = lax.dynamic_slice_in_dim(rows[0], at, batch_size)
            metrics, probabilities = every_lane(results[0], params, batch_stats, data, batch)
            return metrics, lax.dynamic_update_slice_in_dim(results[1], probabilities, at, axis=1)

        example = jax.eval_shape(every_lane, metrics, params, batch_stats, data, rows[0, :batch_size])[1]
        results = (metrics, jnp.zeros((lanes, rows.shape[1], example.shape[-1])))
        if steps is None:
            return one(start, results)
        return lax.fori_loop(start, start + steps, one, results)

    return evaluate_steps


def _over_lanes(function: Callable[..., Any], lanes: int, shared: tuple[int, ...]) -> Callable[..., Any]:
    """`function` of every lane; the arguments numbered in `shared` have no axis of lanes."""

    def one_lane(*args: Any) -> Any:
        first = (a if i in shared else jax.tree.map(lambda x: x[0], a) for i, a in enumerate(args))
        return jax.tree.map(lambda x: x[None], function(*first))

    def many_lanes(*args: Any) -> Any:
        axes = tuple(None if i in shared else 0 for i in range(len(args)))
        return jax.vmap(function, in_axes=axes)(*args)

    # A vmapped convolution is a grouped one, which is slow on CPU; one lane goes without.
    return one_lane if lanes == 1 else many_lanes


def _lane_by_lane(program: Callable[..., Any], shared: tuple[int, ...]) -> Callable[..., Any]:
    """`program`, called for each lane by itself, in threads: what comes of a lane is what it would be alone,
    to the last bit.

    No argument is donated; those numbered in `shared` have no axis of lanes.
    """
    pool = ThreadPoolExecutor(process.cpu_cores())

    @jax.jit
    def parted(args: Any) -> list[Any]:
        lanes = len(jax.tree.leaves(args)[0])
        return [jax.tree.map(lambda x, at=at: x[at : at + 1], args) for at in range(lanes)]

    @jax.jit
    def joined(results: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *results)

    def call(*args: Any, **static: Any) -> Any:
        def one_lane(mine: Any) -> Any:
            with jax.transfer_guard("disallow"):
                result = program(*(mine.get(i, arg) for i, arg in enumerate(args)), **static)
            return jax.block_until_ready(result)

        by_lane = {i: arg for i, arg in enumerate(args) if i not in shared}
        return joined(list(pool.map(one_lane, parted(by_lane))))

    return call


def one_by_one(state: TrainState) -> bool:
    """Whether each lane is trained by itself: on CPU, where one program for all lanes rounds otherwise than a
    program for one, and is no faster, as long as copies of the states, made at each call, cost little.
    """
    lanes = len(state.step)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return jax.default_backend() == "cpu" and lanes > 1 and nbytes <= lanes * LANE_BYTES


def loops_well(forward: LaneForward, state: TrainState, inputs: Sequence[Any], batch_size: int) -> bool:
    """Whether several steps go into one device call: always, but on CPU with convolutions.

    XLA runs those ten times slower inside a loop there (a training step of OpenFace, nothing frozen, batch
    32: 1.5 s alone, 18 s in `lax.fori_loop`; jaxlib 0.10).
    """
    if jax.default_backend() != "cpu":
        return True
    params, batch_stats = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (state.params, state.batch_stats)
    )
    batch = tuple(jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype) for array in inputs)
    traced = jax.jit(forward).trace(params, batch_stats, batch, jax.random.key(0))
    return "conv_general_dilated" not in str(traced.jaxpr)


class Device:
    """The programs of a run with its data, called so that a device call lasts about `CALL_SECONDS`.

    Args:
      forward: of one lane.
      make_optimizer, class_weights: see `make_train_steps`.
      data: read by training and evaluation.
      lanes: what the lanes differ in.
      loops: whether several steps go into one device call.
      one_by_one: whether each lane is trained by itself, see `one_by_one`.
    """

    def __init__(
        self,
        forward: LaneForward,
        make_optimizer: Callable[[Any], optax.GradientTransformation],
        class_weights: np.ndarray,
        data: Data,
        lanes: Lanes,
        loops: bool,
        one_by_one: bool,
    ) -> None:
        self._lanes = jax.device_put(lanes)
        train_steps = make_train_steps(forward, make_optimizer, class_weights)
        evaluate_steps = make_evaluate_steps(forward)
        if one_by_one:
            train_steps = _lane_by_lane(train_steps, shared=(3, 5, 6))
            evaluate_steps = _lane_by_lane(evaluate_steps, shared=(3, 4, 5, 6))
        self._train_steps = _Calls(train_steps, data, loops)
        self._evaluate_steps = _Calls(evaluate_steps, data, loops)

    def train(
        self, state: TrainState, metrics: Metrics, rows: np.ndarray, first: int, batch_size: int
    ) -> Iterator[tuple[TrainState, Metrics, int]]:
        """Trains on the images `rows`, int [L, n], in this order, from the batch numbered `first` on.

        The last batch may be smaller. State and metrics may be donated.

        Yields:
          after every device call: state, metrics, and the number of the next batch.
        """
        full, rest = divmod(rows.shape[1], batch_size)
        whole, last = np.split(rows, [full * batch_size], axis=1)
        for part, size, before in ((whole, batch_size, 0), (last, rest, full)):
            for call, _, after in self._train_steps.over(part, max(0, first - before), size):
                state, metrics = call(state, metrics, self._lanes)
                yield state, metrics, before + after

    def evaluate(
        self, state: TrainState, rows: np.ndarray, batch_size: int, what: str
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Inference mode over every image of `rows`, int [n]; `what` heads the progress bar.

        Returns:
          {"loss", "accuracy"}, float [L] each, and probabilities, float32 [L, n, classes].
        """
        filled = np.full((1, -(-len(rows) // batch_size) * batch_size), -1)
        filled[0, : len(rows)] = rows
        metrics, probabilities = empty_metrics(len(self._lanes)), []
        with tqdm(total=len(rows), desc=what, unit="img", leave=False) as bar:
            for call, columns, after in self._evaluate_steps.over(filled, 0, batch_size):
                metrics, block = call(metrics, state.params, state.batch_stats)
                probabilities.append(np.asarray(block)[:, columns])
                bar.update(min(len(rows), after * batch_size) - bar.n)
        return values(metrics), np.concatenate(probabilities, axis=1)[:, : len(rows)]


class _Calls:
    """Splits the batches of a program into device calls."""

    def __init__(self, program: Callable[..., Any], data: Data, loops: bool) -> None:
        self._program, self._data, self._loops = program, data, loops
        # By batch size, how many last about CALL_SECONDS.
        self._steps: dict[int, int] = collections.defaultdict(lambda: 1)

    def over(
        self, rows: np.ndarray, number: int, batch_size: int
    ) -> Iterator[tuple[Callable[..., Any], slice, int]]:
        """The device calls for `rows`, int [lanes, n], from the batch numbered `number` on.

        Yields:
          the program of its first arguments; the columns that it works on, of the rows on the device; the
          number of the batch after it.
        """
        for chunk, on_device in _ahead(self._chunks(rows, number, batch_size)):
            while number < chunk.stop:
                start = number - chunk.start
                steps = min(self._steps[batch_size] if self._loops else 1, chunk.stop - number)
                columns = slice(start * batch_size, (start + steps) * batch_size)
                number += steps
                yield functools.partial(self._call, on_device, start, steps, batch_size), columns, number

    def _chunks(self, rows: np.ndarray, number: int, batch_size: int) -> Iterator[tuple[range, Any]]:
        """Numbers of batches whose data are on the device at a time, and `Data.on_device` of their rows."""
        batches = rows.shape[1] // batch_size if batch_size else 0
        while number < batches:
            chunk = range(batches)
            if not self._loops:
                chunk = range(number, number + 1)  # so one program serves every list of images
            elif self._data.mapped:
                size = int(CHUNK_BYTES / (len(rows) * batch_size * self._data.row_bytes))
                chunk = range(number, min(number + max(1, size), batches))
            yield chunk, self._data.on_device(rows[:, chunk.start * batch_size : chunk.stop * batch_size])
            number = chunk.stop

    def _call(self, on_device: Any, start: int, steps: int, batch_size: int, *arguments: Any) -> Any:
        begin, count = jax.device_put((np.int32(start), np.int32(steps)))
        started = time.perf_counter()
        with jax.transfer_guard("disallow"):  # nothing moves between host and device meanwhile
            result = self._program(
                *arguments, *on_device, begin, count if self._loops else None, batch_size=batch_size
            )
        jax.block_until_ready(result)
        # A first call compiles too, and says little: the next is longer, but not by more than eight.
        wanted = steps * CALL_SECONDS / (time.perf_counter() - started)
        self._steps[batch_size] = max(1, int(min(wanted, 8 * self._steps[batch_size])))
        return result


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items, each computed in another thread while the one before is in use."""
    # The first here, where Ctrl-C ends it: damaged rows may be computed again, most of them by then.
    item = next(items, None)
    with ThreadPoolExecutor(1) as pool:
        while item is not None:
            coming = pool.submit(next, items, None)
            yield item
            item = coming.result()
