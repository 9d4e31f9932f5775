"""Many steps in a device call, several lanes at once, features off the map: the same as single steps."""

import dataclasses
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import default
from fer_jax import compilation, epochs, features, forward, freezing, initialisation, models, train
from fer_jax.data import faces as drawn
from fer_jax.data import preprocessing
from fer_jax.errors import InputError
from fer_jax.feature_files import StoredArray
from fer_jax.initialisation import Init
from fer_jax.optimizer import categorical_crossentropy, keras_adam
from fer_jax.runs import Lane

BATCH, IMAGES = 8, 60  # seven batches and a smaller one
FACES, LABELS = drawn.draw(IMAGES, seed=5)
ROWS = np.random.default_rng(0).permutation(IMAGES)
SINGLE = Lane(0, 1e-4)


def config_of(**options) -> ConfigDict:
    config = default.get_config()
    config.update({"backbone": "mobilenet", "alpha": 0.25, "image_size": 64, "batch_size": BATCH} | options)
    return config


class Run:
    """Model, variables and hoisted frozen part of one configuration."""

    def __init__(self, config: ConfigDict, reuse: bool = True):
        self.config = config.copy_and_resolve_references()
        self.config.features.reuse = reuse
        self.init = Init("random", "")
        self.model, self.learning = initialisation.build_classifier(self.config, self.init, 7)
        self.variables = initialisation.initial_variables(self.config, self.init, self.model)
        self.calibrate()
        self.hoisted = forward.hoist_frozen_part(
            self.config, self.model, **self.variables, learning=self.learning, faces=FACES
        )

    def calibrate(self):
        """Gives the frozen layers the statistics of the faces: with fresh ones signals fade to nothing."""
        learning = frozenset(models.layer_names(self.model.backbone))
        live = self.model.clone(backbone=self.model.backbone.clone(learning=learning))
        images = preprocessing.prepare(jnp.asarray(FACES), self.config.image_size, "tf")
        old = self.variables["batch_stats"]
        _, new = live.apply(self.variables, images, train=True, mutable=["batch_stats"])
        stats = jax.tree.map(lambda new, old: (new - 0.99 * old) / 0.01, new["batch_stats"], old)
        self.variables["batch_stats"]["backbone"] = stats["backbone"]

    def epoch(self, lanes=(SINGLE,), rows=None, inputs=None):
        """One epoch on the device: state, mean loss and accuracy, probabilities of the first 20 images."""
        hoisted = self.hoisted
        if inputs is not None:
            hoisted = forward.Hoisted(hoisted.forward, inputs, hoisted.tail, hoisted.cut, "")
        weights = np.ones(7, np.float32)
        device, state = train.place(
            self.config, self.model, self.variables, self.learning, hoisted, LABELS, weights, lanes
        )
        metrics = epochs.empty_metrics(len(lanes))
        rows = np.stack([ROWS] * len(lanes)) if rows is None else rows
        numbers = []
        calls = device.train(state, metrics, rows, 0, BATCH)
        for state, metrics, number in calls:  # noqa: B007
            numbers.append(number)
        assert numbers[-1] == -(-IMAGES // BATCH)
        test, probabilities = device.evaluate(state, np.arange(20), 16, "test")
        return jax.device_get(state), epochs.values(metrics), test, probabilities


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FER_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Run(config_of())


def assert_close(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def assert_same_course(ours, theirs):
    """The same history to 1e-5; weights to 1e-3, since Adam moves by the sign of gradients that are noise."""
    assert_close(ours[1:3], theirs[1:3], 1e-5)
    assert_close((ours[0], ours[3]), (theirs[0], theirs[3]), 1e-3)


def plain_epoch(run: Run, lane: Lane = SINGLE):
    """The epoch as one writes it down: a Python loop over batches, the whole model in every step."""
    passing = forward.make_forward(run.config, run.model)
    variables = initialisation.with_head(run.variables, run.model, lane.seed)
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = freezing.partition(keras_adam(lane.learning_rate), params, run.learning)
    state, losses, right = optimizer.init(params), [], []

    @compilation.jit  # products round alike: noise moves Adam
    def step(params, stats, state, faces, labels, key):
        def loss_of(params):
            logits, new = passing(params, stats, faces, key)
            losses = categorical_crossentropy(logits, labels)
            return losses.mean(), (losses, logits.argmax(-1) == labels, new)

        gradients, (losses, right, new) = jax.grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), new, state, losses, right

    for number, start in enumerate(range(0, IMAGES, BATCH)):
        rows = ROWS[start : start + BATCH]
        key = jax.random.fold_in(jax.random.key(lane.seed), number)
        params, stats, state, *told = step(params, stats, state, FACES[rows], LABELS[rows], key)
        losses.append(told[0])
        right.append(told[1])
    logits, _ = passing(params, stats, jnp.asarray(FACES[:20]))
    means = {"loss": np.concatenate(losses).mean(), "accuracy": np.concatenate(right).mean()}
    return params, means, jax.nn.softmax(logits)


def test_an_epoch_on_the_device_is_that_of_a_plain_loop(cut_run):
    state, means, test, probabilities = cut_run.epoch()
    params, expected, chances = plain_epoch(cut_run)
    tail, _ = cut_run.hoisted.tail(params, cut_run.variables["batch_stats"])
    assert means["loss"][0] == pytest.approx(expected["loss"], rel=1e-5)
    assert means["accuracy"][0] == pytest.approx(expected["accuracy"], abs=1e-6)
    chances = np.asarray(chances)
    loss = -np.log(chances[np.arange(20), LABELS[:20]]).mean()
    assert test["loss"][0] == pytest.approx(float(loss), rel=1e-5)
    assert test["accuracy"][0] == pytest.approx(np.mean(chances.argmax(1) == LABELS[:20]), abs=1e-6)
    assert_close(jax.tree.map(lambda x: x[0], state.params), tail, 1e-3)
    assert_close(probabilities[0], chances, 1e-3)
    assert np.ptp(chances, axis=0).max() > 1e-4, "faces differ, so the comparison says something"


def test_each_lane_is_the_run_of_its_seed_and_learning_rate_alone(cut_run):
    lanes = [Lane(seed, rate) for rate in (1e-4, 3e-5) for seed in (0, 4)]
    orders = {seed: np.random.default_rng(seed).permutation(IMAGES) for seed in (0, 4)}
    together = cut_run.epoch(lanes, np.stack([orders[lane.seed] for lane in lanes]))
    for i, lane in enumerate(lanes):
        alone = cut_run.epoch([lane], orders[lane.seed][None])
        assert_same_course(jax.tree.map(lambda x, i=i: x[i : i + 1], together), alone)
    losses = together[1]["loss"]
    assert len(set(losses.round(6))) == len(lanes), "the lanes differ"


def test_steps_in_one_call_or_in_many_give_the_same_bits(cut_run, monkeypatch):
    together = cut_run.epoch()
    monkeypatch.setattr(epochs, "CALL_SECONDS", 1e-9)
    assert_close(cut_run.epoch(), together, tolerance=0.0)


def test_without_loops_one_program_evaluates_lists_of_any_length(cut_run):
    traced = []

    def passing(params, batch_stats, inputs, key=None):
        traced.append(len(inputs[0]))
        return cut_run.hoisted.forward(params, batch_stats, inputs, key)

    device, state = train.place(
        cut_run.config,
        cut_run.model,
        cut_run.variables,
        cut_run.learning,
        dataclasses.replace(cut_run.hoisted, forward=passing),
        LABELS,
        np.ones(7, np.float32),
        [SINGLE],
    )
    device._evaluate_steps._loops = False
    for images in (20, 5, 33):
        loss, probabilities = device.evaluate(state, np.arange(images), 16, "test")
        assert probabilities.shape == (1, images, 7)
        chances = probabilities[0, np.arange(images), LABELS[:images]]
        assert loss["loss"][0] == pytest.approx(-np.log(chances).mean(), rel=1e-5)
    assert traced.count(16) == 2, "the shape of the probabilities, and the program"


@pytest.mark.parametrize("lanes", [3, 4])
def test_lanes_one_by_one_are_the_runs_alone_to_the_last_bit_in_one_program_to_rounding(
    cut_run, monkeypatch, lanes
):
    lanes = [Lane(seed, 1e-4) for seed in range(lanes)]
    with monkeypatch.context() as patch:
        patch.setattr(epochs, "one_by_one", lambda state: len(state.step) > 1)  # on an accelerator too
        one_by_one = cut_run.epoch(lanes)
    for i, lane in enumerate(lanes):
        alone = cut_run.epoch([lane])
        assert not epochs.one_by_one(alone[0])
        assert_close(jax.tree.map(lambda x, i=i: x[i : i + 1], one_by_one), alone, tolerance=0.0)
    assert epochs.one_by_one(one_by_one[0]) == (jax.default_backend() == "cpu")
    monkeypatch.setattr(epochs, "LANE_BYTES", 0)
    assert not epochs.one_by_one(one_by_one[0])
    assert_same_course(cut_run.epoch(lanes), one_by_one)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("on_host", ["state", "data"])
def test_nothing_moves_to_the_device_within_a_call(cut_run, lanes, on_host):
    run = cut_run
    device, state = train.place(
        run.config,
        run.model,
        run.variables,
        run.learning,
        run.hoisted,
        LABELS,
        np.ones(7, np.float32),
        [Lane(seed, 1e-4) for seed in range(lanes)],
    )
    if on_host == "state":
        state = dataclasses.replace(state, params=jax.device_get(state.params))
    else:
        data = device._train_steps._data
        data._arrays = jax.device_get(data._arrays)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        next(device.train(state, epochs.empty_metrics(lanes), np.stack([ROWS] * lanes), 0, BATCH))


def test_features_off_the_disk_in_chunks_give_the_same_bits_one_damaged_meanwhile(
    cut_run, monkeypatch, tmp_path, caplog
):
    lanes = [SINGLE, Lane(4, 3e-5)]
    resident = cut_run.epoch(lanes)
    (array,) = cut_run.hoisted.inputs
    stored = features.compute(
        lambda batch: (batch,), array, {"key": "a"}, batch_size=BATCH, max_gb=1.0, memory_gb=0.0,
        cache_dir=tmp_path,
    )  # fmt: skip
    assert isinstance(stored[0], StoredArray)
    (path,) = tmp_path.glob("features/*/0.npy")
    with path.open("r+b") as file:
        file.seek(-array[0].nbytes * IMAGES // 2, os.SEEK_END)
        file.write(b"damage")
    monkeypatch.setattr(epochs, "CHUNK_BYTES", 2 * BATCH * array[0].nbytes)
    assert_close(cut_run.epoch(lanes, inputs=stored), resident, tolerance=0.0)
    assert caplog.text.count("damaged") == 1


def test_the_next_chunk_is_read_while_one_is_in_use():
    read = [threading.Event() for _ in range(3)]

    def chunks():
        for number, event in enumerate(read):
            event.set()
            yield number

    for number in epochs._ahead(chunks()):
        assert all(event.wait(30) for event in read[: number + 2])


def test_a_run_that_stops_reads_no_further_chunk_than_the_one_ahead():
    read = []

    def chunks():
        for number in range(5):
            read.append(number)
            yield number

    ahead = epochs._ahead(chunks())
    next(ahead)
    ahead.close()
    assert read == [0, 1]


def test_a_chunk_that_cannot_be_read_fails_the_run_after_those_before_it():
    def chunks():
        yield "good"
        raise InputError("the disk is gone")

    ahead = epochs._ahead(chunks())
    assert next(ahead) == "good"
    with pytest.raises(InputError, match="the disk is gone"):
        next(ahead)


def test_flips_through_the_cut_are_those_of_whole_steps():
    config = config_of()
    config.augment.flip = True
    run, uncut = Run(config), Run(config, reuse=False)
    assert run.hoisted.cut
    assert len(run.hoisted.inputs) == 2
    assert not uncut.hoisted.cut
    flipped, plain = run.epoch(), Run(config_of()).epoch()
    whole = uncut.epoch()
    assert_close(flipped[1:3], whole[1:3], 1e-5)
    assert abs(flipped[1]["loss"] - plain[1]["loss"]) > 1e-5, "flips make a difference"


def test_other_augmentation_runs_whole_and_says_why(caplog):
    config = config_of()
    config.augment.update({"flip": True, "shift": 0.1})
    with caplog.at_level("INFO", logger="fer_jax"):
        run = Run(config)
    assert not run.hoisted.cut
    assert "augmentation changes the images" in caplog.text


def test_several_seeds_without_a_cut_are_refused(small_csv, tmp_path):
    config = config_of(init="scratch", seeds=2)
    config.data.path = str(small_csv)
    with pytest.raises(InputError, match=r"2 seeds .* computed in every step \(nothing is frozen\)"):
        train.train_and_evaluate(config, tmp_path / "run")


def test_bfloat16_is_close_to_float32_and_keeps_weights_and_statistics_in_float32(cut_run):
    run = Run(config_of(compute_dtype="bfloat16"))
    assert {array.dtype.name for array in run.hoisted.inputs} == {"bfloat16"}
    state, means, *_ = run.epoch()
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {"float32"}
    assert means["loss"][0] == pytest.approx(cut_run.epoch()[1]["loss"][0], rel=0.03)


def test_optimizer_state_holds_no_array_for_a_frozen_leaf():
    run = Run(config_of(), reuse=False)
    state, *_ = run.epoch()
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    learning = [
        leaf.size
        for layer, tensors in state.params["backbone"].items() if layer in run.learning
        for leaf in jax.tree.leaves(tensors)
    ] + [leaf.size for leaf in jax.tree.leaves(state.params["head"])]  # fmt: skip
    assert sizes == sorted([1, *learning, *learning])
