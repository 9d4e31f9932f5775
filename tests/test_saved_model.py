import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fer_jax import initialisation, saved_model
from fer_jax.data import preprocessing
from fer_jax.errors import InputError

SPEC = saved_model.Spec(
    backbone="mobilenet",
    alpha=0.25,
    image_size=32,
    pooling="avg",
    batch_norm=True,
    hidden=(5,),
    scaling="tf",
    class_names=("calm", "cross"),
    side=48,
    channels=1,
    provenance={"title": "a test"},
)


@pytest.fixture(scope="module")
def variables():
    return initialisation.random_variables(SPEC.abstract_variables(), 3, "backbone")


@pytest.fixture
def file(variables, tmp_path):
    path = tmp_path / saved_model.FILE
    saved_model.save(path, SPEC, variables)
    return path


def test_a_model_comes_back_bit_for_bit_with_what_it_is(file, variables):
    for path in (file, file.parent):
        loaded = saved_model.load(path)
        assert loaded.spec == SPEC
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_its_module_computes_with_its_variables(file, variables):
    loaded = saved_model.load(file)
    faces = np.random.default_rng(0).integers(0, 256, (2, 48, 48), np.uint8)
    logits = loaded.spec.module().apply(loaded.variables, preprocessing.prepare(faces, 32, "tf"))
    assert logits.shape == (2, 2)
    assert np.isfinite(logits).all()


def test_a_missing_file_is_named_and_an_old_run_told_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors: no such file, expected a trained model$"):
        saved_model.load(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="start the run again"):
        saved_model.load(tmp_path)


def test_a_damaged_file_is_refused_in_a_line(file):
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged") as error:
        saved_model.load(file)
    assert "\n" not in str(error.value)


def test_another_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path)
    with pytest.raises(InputError, match="expected a model written by"):
        saved_model.load(path)


def test_a_file_of_types_that_numpy_has_not_is_refused_as_another(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "other.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(InputError, match="expected a model written by"):
        saved_model.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("alpha"),
        lambda fields: fields.pop("class_names"),
        lambda fields: fields.update(colour="grey"),
        lambda fields: fields.update(hidden=5),
        lambda fields: fields.update(image_size="large"),
        lambda fields: fields.update(provenance=None),
        None,
    ],
)
def test_a_spec_that_is_none_is_refused_in_a_line(file, change):
    fields = dataclasses.asdict(SPEC)
    if change:
        change(fields)
    metadata = {"format": saved_model.FORMAT} | ({"spec": json.dumps(fields)} if change else {})
    save_file(load_file(file), file, metadata)
    with pytest.raises(InputError, match="its spec is not as") as error:
        saved_model.load(file)
    assert "\n" not in str(error.value)


def test_weights_of_a_training_that_diverged_are_refused(file, variables):
    variables["params"]["head"]["predictions"]["bias"][1] = np.nan
    saved_model.save(file, SPEC, variables)
    variables["params"]["head"]["predictions"]["bias"][1] = 0.0
    with pytest.raises(
        InputError, match="holds values that are no numbers, as after a training that diverged"
    ):
        saved_model.load(file)


def test_arrays_of_another_network_are_refused_by_name(file):
    other = dataclasses.replace(SPEC, class_names=("calm", "cross", "keen"))
    metadata = {"format": saved_model.FORMAT, "spec": json.dumps(dataclasses.asdict(other))}
    save_file(load_file(file), file, metadata)
    with pytest.raises(InputError, match="head/predictions/bias"):
        saved_model.load(file)
