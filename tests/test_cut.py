import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import cut, freezing, models
from fer_jax.data import faces as drawn
from fer_jax.data import preprocessing
from fer_jax.models import convolution
from fer_jax.models.classifier import Classifier, Head, resolve_pooling
from fer_jax.models.layers import BatchNormalization
from fer_jax.optimizer import categorical_crossentropy

LABELS = np.array([3, 0, 6, 1, 4])
# Features of ROWS are computed in the batches 0-3 and 4-7, then put together for one step.
ROWS = np.array([5, 0, 6, 3, 2])


@dataclasses.dataclass
class Setting:
    """A classifier, and the pass over it in the form that the trainer has it."""

    model: Classifier
    learning: frozenset[str]
    scaling: str
    augment: Any = None

    def forward(self, params, batch_stats, faces, key):
        if key is not None and self.augment is not None:
            faces = self.augment(jax.random.fold_in(key, 1), faces)
        images = preprocessing.prepare(faces, self.model.backbone.image_size, self.scaling)
        images = images.astype(jax.tree.leaves(params)[0].dtype)
        variables = {"params": params, "batch_stats": batch_stats}
        if key is None:
            return self.model.apply(variables, images), batch_stats
        logits, updated = self.model.apply(
            variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return logits, updated.get("batch_stats", {})

    def shapes(self):
        size = self.model.backbone.image_size
        variables = jax.eval_shape(self.model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
        return variables["params"], variables.get("batch_stats", {})

    def split(self, *variables):
        return cut.split(self.forward, *(variables or self.shapes()), self.learning)


def setting(name, freeze="last", *, size=None, alpha=1.0, last=4, layers=(), head=None, augment=None):
    make = functools.partial(models.build, name, alpha=alpha, image_size=size)
    learning = freezing.learning_layers(models.layer_names(make()), freeze, last=last, layers=layers)
    head = Head(7, pooling=resolve_pooling("auto", name), **(head or {}))
    return Setting(Classifier(make().clone(learning=learning), head), learning, "unit", augment)


@pytest.fixture(scope="module")
def faces():
    return drawn.draw(8, seed=3)[0]


def random_variables(shapes):
    """Random float64 weights under which activations keep their size from layer to layer (He)."""
    random = np.random.default_rng(0)

    def fill(path, leaf):
        shape, name = leaf.shape, path[-1].key
        if name.endswith("kernel"):
            fan_in = shape[0] * shape[1] if name == "depthwise_kernel" else np.prod(shape[:-1])
            return np.sqrt(2 / fan_in) * random.standard_normal(shape)
        start = 1.0 if name in ("gamma", "moving_variance") else 0.0
        return start + 0.1 * random.random(shape)

    return tuple(jax.tree_util.tree_map_with_path(fill, tree) for tree in shapes)


def assert_close(ours, theirs, what="statistics"):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-12)
    assert error <= 1e-9, f"{what}: relative error {error:.1e}"


def assert_cut_equals_uncut(case, faces):
    shapes = case.shapes()
    # Two compiled programs round differently, and batch norm over five images magnifies that; in float64
    # what is left is the difference between the programs.
    with jax.enable_x64(True):
        return _assert_cut_equals_uncut(case, random_variables(shapes), faces)


def _assert_cut_equals_uncut(case, variables, faces):
    params, batch_stats = variables
    found, reason = case.split(params, batch_stats)
    assert found, reason
    key = jax.random.key(7)
    upstream = jax.jit(found.upstream)
    parts = [upstream(params, batch_stats, faces[i : i + 4]) for i in range(0, len(faces), 4)]
    crossing = tuple(np.concatenate(values)[ROWS] for values in zip(*parts, strict=True))
    assert [values.shape[1:] for values in crossing] == [value.shape for value in found.crossing]
    tail = found.tail(params, batch_stats)

    def loss_of(tail_params, forward):
        logits, new_stats = forward(tail_params)
        return categorical_crossentropy(logits, LABELS).mean(), (logits, new_stats)

    @jax.jit
    def from_features(tail_params, tail_stats, crossing):
        step = jax.value_and_grad(loss_of, has_aux=True)
        trained = step(tail_params, lambda tail: found.downstream(tail, tail_stats, crossing, key))
        return *trained, found.evaluate(tail_params, tail_stats, crossing)

    @jax.jit
    def from_faces(tail_params, params, batch_stats, faces):
        def forward(tail, key):
            return case.forward(cut.merge(params, tail), batch_stats, faces, key)

        trained = jax.value_and_grad(loss_of, has_aux=True)(tail_params, lambda tail: forward(tail, key))
        return *trained, forward(tail_params, None)[0]

    (loss, (logits, stats)), gradients, evaluated = from_features(*tail, crossing)
    (whole_loss, (whole_logits, whole_stats)), whole_gradients, whole_evaluated = from_faces(
        tail[0], params, batch_stats, faces[ROWS]
    )
    assert_close(logits, whole_logits, "logits")
    assert_close(loss, whole_loss, "loss")
    assert_close(evaluated, whole_evaluated, "logits in inference mode")
    assert np.linalg.norm(np.asarray(evaluated) - np.asarray(logits)) > 1e-3  # the modes do differ
    assert jax.tree.structure(stats) == jax.tree.structure(tail[1])
    jax.tree.map(assert_close, cut.merge(batch_stats, stats), dict(whole_stats))
    labels = jax.tree.leaves(freezing.labels(tail[0], case.learning))
    triples = zip(labels, jax.tree.leaves(gradients), jax.tree.leaves(whole_gradients), strict=True)
    # A bias before a batch norm has no gradient but rounding.
    learned = [(ours, whole) for label, ours, whole in triples if label == freezing.LEARNING]
    learned = [(ours, whole) for ours, whole in learned if np.linalg.norm(whole) > 1e-6]
    assert len(learned) >= 2
    for ours, whole in learned:
        assert_close(ours, whole, "gradient")
    return found


# Faces of 48 pixels are resized to 48 and 96 without rounding.
@pytest.mark.parametrize("freeze", ["last", "all"])
@pytest.mark.parametrize(("name", "size"), [("openface", 96), ("mobilenet", 48), ("resnet50", 48)])
def test_a_step_from_features_of_other_batches_equals_the_whole_step(name, size, freeze, faces, shallow):
    assert_cut_equals_uncut(setting(name, freeze, size=size), faces)


@pytest.mark.parametrize("freeze", ["last", "all"])
def test_vggface_crosses_before_its_dropout_which_stays_active(freeze, faces, shallow):
    found = assert_cut_equals_uncut(setting("vggface", freeze, head={"hidden": (8,), "dropout": 0.4}), faces)
    assert [value.layer for value in found.crossing] == ["fc6"]


def test_a_batch_norm_that_learns_over_frozen_features_keeps_its_batch_out_of_them(faces, shallow):
    # conv_pw_3 is frozen, conv_pw_3_bn is not: it reads features that depend on no learning weight.
    case = setting("mobilenet", last=2, size=48, head={"dropout": 0.3})
    found = assert_cut_equals_uncut(case, faces)
    assert [value.layer for value in found.crossing] == ["conv_pw_3"]


def test_frozen_layers_above_learning_ones_stay_in_the_step(faces, shallow):
    names = models.layer_names(models.build("mobilenet", image_size=48))
    layers = [name for name in names if not name.startswith("conv_pw_2")]
    found = assert_cut_equals_uncut(setting("mobilenet", "layers", layers=layers, size=48), faces)
    assert "params/backbone/conv_pw_3/kernel" in found.kept
    assert "params/backbone/conv_pw_1/kernel" not in found.kept


def test_a_head_without_batch_norm_on_a_frozen_backbone(faces, shallow):
    case = setting("mobilenet", "all", size=48, head={"batch_norm": False, "dropout": 0.5})
    assert_cut_equals_uncut(case, faces)


@pytest.mark.parametrize(
    ("name", "crossing"),
    [
        ("openface", [("flatten", (736,))]),
        ("vggface", [("fc6", (1, 1, 4096))]),
        ("resnet50", [("conv5_block3_2_relu", (7, 7, 512)), ("conv5_block2_out", (7, 7, 2048))]),
        ("mobilenet", [("conv_dw_13_relu", (7, 7, 1024))]),
    ],
)
def test_what_crosses_under_the_papers_freezing_at_any_batch_size(name, crossing):
    case = setting(name)
    found, _ = case.split()
    assert [(value.layer, value.shape) for value in found.crossing] == crossing
    assert found.bytes_per_image == sum(4 * np.prod(shape) for _, shape in crossing)
    variables = case.shapes()
    tail, key = found.tail(*variables), jax.eval_shape(jax.random.key, 0)
    for batch in (1, 3):
        batch_of_faces = jax.ShapeDtypeStruct((batch, 48, 48), jnp.uint8)
        values = jax.eval_shape(found.upstream, *variables, batch_of_faces)
        assert [value.shape for value in values] == [(batch, *shape) for _, shape in crossing]
        assert jax.eval_shape(found.downstream, *tail, values, key)[0].shape == (batch, 7)
        assert jax.eval_shape(found.evaluate, *tail, values).shape == (batch, 7)


@pytest.mark.parametrize(
    ("name", "first", "crossing"),
    [
        ("mobilenet", "conv_dw_13", [("conv_pw_12_relu", (7, 7, 1024))]),
        ("vggface", "conv5_3", [("zero_padding2d_12", (16, 16, 512))]),
        (
            "resnet50",
            "conv5_block3_2_conv",
            [("conv5_block3_1_relu", (7, 7, 512)), ("conv5_block2_out", (7, 7, 2048))],
        ),
    ],
)
def test_of_a_convolution_that_learns_its_input_crosses_and_no_copies_of_it(name, first, crossing):
    names = models.layer_names(models.build(name))
    found, _ = setting(name, last=len(names) - names.index(first)).split()
    assert [(value.layer, value.shape) for value in found.crossing] == crossing


def test_a_cut_before_convolutions_by_winograd_equals_the_uncut_step(faces, shallow, monkeypatch):
    monkeypatch.setattr(convolution, "_WINOGRAD_CHANNELS", 4)  # the shallow backbone has no more
    names = models.layer_names(models.build("vggface"))
    found = assert_cut_equals_uncut(setting("vggface", last=len(names) - names.index("conv4_1")), faces)
    assert [value.shape for value in found.crossing] == [(30, 30, 4)]


def test_the_tail_holds_what_learns_and_nothing_else_under_the_papers_freezing():
    case = setting("mobilenet")
    found, _ = case.split()
    params, batch_stats = found.tail(*case.shapes())
    assert set(params["backbone"]) == {"conv_pw_13", "conv_pw_13_bn"}
    assert set(params["head"]) == {"batch_normalization", "predictions"}
    assert set(batch_stats["backbone"]) == {"conv_pw_13_bn"}
    assert "params/backbone/conv_dw_13/depthwise_kernel" in found.hoisted
    assert not found.hoisted & found.kept


def test_the_fingerprint_tells_upstream_programs_apart_and_ignores_the_head(shallow):
    def fingerprint(**changes):
        return setting("mobilenet", **({"size": 48, "alpha": 0.25} | changes)).split()[0].fingerprint

    same = fingerprint()
    assert fingerprint(head={"hidden": (16,), "dropout": 0.2, "batch_norm": False}) == same
    others = [fingerprint(size=64), fingerprint(alpha=0.5), fingerprint(last=5)]
    case = dataclasses.replace(setting("mobilenet", size=48, alpha=0.25), scaling="tf")
    assert len({same, *others, case.split()[0].fingerprint}) == 5


def test_reasons_for_no_cut_are_given(shallow):
    small = {"size": 48, "alpha": 0.25}

    def flipped(key, faces):
        return jnp.where(jax.random.bernoulli(key), faces[:, :, ::-1], faces)

    assert setting("mobilenet", "none", **small).split() == (None, "nothing is frozen")
    found, reason = setting("mobilenet", augment=flipped, **small).split()
    assert found is None
    assert reason.startswith("augmentation changes the images")
    names = models.layer_names(models.build("mobilenet", image_size=48))
    found, reason = setting("mobilenet", "layers", layers=names[1:], **small).split()
    assert found is None
    assert reason.startswith("a layer that learns stands before")


def plain_forward(mixing):
    """A frozen dense layer, then `mixing`, then the head's; compiled, so it traces as one call."""

    @jax.jit
    def forward(params, batch_stats, faces, key):
        x = faces.reshape(len(faces), -1)[:, :6] / 255.0 @ params["backbone"]["frozen"]["kernel"]
        return mixing(x, key is not None) @ params["head"]["kernel"], batch_stats

    params = {
        "backbone": {"frozen": {"kernel": jnp.linspace(-1, 1, 24).reshape(6, 4)}},
        "head": {"kernel": jnp.linspace(-1, 2, 12).reshape(4, 3)},
    }
    return forward, params


@pytest.mark.parametrize(("batch", "times"), [(models.TRIAL_BATCH, 2), (5, 4)])
def test_a_mode_is_traced_once_more_only_for_another_batch_than_the_papers(batch, times, shallow):
    case, traced = setting("mobilenet", size=48, alpha=0.25), []

    def forward(params, batch_stats, faces, key):
        traced.append(len(faces))
        return case.forward(params, batch_stats, faces, key)

    shapes = case.shapes()
    found, _ = cut.split(forward, *shapes, case.learning)
    crossing = [jax.ShapeDtypeStruct((batch, *v.shape), v.dtype) for v in found.crossing]
    for _ in range(2):
        jax.eval_shape(found.downstream, *found.tail(*shapes), crossing, jax.random.key(0))
        jax.eval_shape(found.evaluate, *found.tail(*shapes), crossing)
    assert len(traced) == times


def test_a_compiled_forward_pass_is_cut_within(faces):
    forward, params = plain_forward(lambda x, train: jnp.tanh(x))
    found, _ = cut.split(forward, params, {}, frozenset())
    (features,) = found.upstream(params, {}, faces)
    logits, _ = found.downstream(params, {}, (features,), jax.random.key(0))
    assert found.kept == {"params/head/kernel"}
    np.testing.assert_allclose(logits, forward(params, {}, faces, None)[0], rtol=1e-6)


@pytest.mark.parametrize("axis", [0, None])
def test_unmarked_mixing_of_the_batch_is_not_hoisted_either(axis, faces):
    # Evaluation does not compute it, so it may not cross.
    forward, params = plain_forward(lambda x, train: x - x.mean(axis) if train else x)
    found, _ = cut.split(forward, params, {}, frozenset())
    (features,) = found.upstream(params, {}, faces)
    recombined, _ = found.downstream(params, {}, (features[ROWS],), jax.random.key(0))
    expected, _ = forward(params, {}, faces[ROWS], jax.random.key(0))
    np.testing.assert_allclose(recombined, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_norm_that_learns_is_marked_in_the_traced_program():
    # The mark alone keeps its input's followers live, whatever evaluation computes.
    def marked(learns):
        norm = BatchNormalization(learns=learns)
        variables = norm.init(jax.random.key(0), jnp.zeros((5, 2)))
        apply = functools.partial(norm.apply, variables, mutable=["batch_stats"])
        return [eqn for eqn in jax.make_jaxpr(apply)(jnp.zeros((5, 2))).eqns if cut._mixes(eqn)]

    assert len(marked(True)) == 1
    assert not marked(False)


def test_lanes_of_tails_train_as_single_ones_do(faces, shallow):
    case = setting("mobilenet", size=48, alpha=0.25, head={"dropout": 0.3})
    shapes = case.shapes()
    with jax.enable_x64(True):
        params, batch_stats = random_variables(shapes)
        found, _ = case.split(params, batch_stats)
        crossing = jax.jit(found.upstream)(params, batch_stats, faces)
        tail, stats = found.tail(params, batch_stats)
        lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.5 * leaf]), tail)
        keys = jax.random.split(jax.random.key(1), 2)
        together = jax.jit(jax.vmap(found.downstream, (0, None, None, 0)))(lanes, stats, crossing, keys)
        for lane in range(2):
            single = jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes)
            alone = jax.jit(found.downstream)(single, stats, crossing, keys[lane])
            jax.tree.map(lambda ours, theirs, i=lane: assert_close(ours[i], theirs, "lane"), together, alone)
