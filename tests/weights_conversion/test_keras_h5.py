"""The reader of Keras files: every layout, and nothing but the layout."""

import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fer_jax.errors import InputError
from weights_conversion import keras_h5

KERNEL = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
GAMMA = np.array([1, 2, 3], np.float32)
TWO_LAYERS = {"conv1": {"kernel": KERNEL}, "bn": {"gamma": GAMMA}}


def strip_names(path: Path) -> Path:
    """What Keras 3 wrote before it kept the names of layers."""
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():
            if "vars" in group:
                del group["vars"].attrs["name"]
    return path


def assert_holds(layers: keras_h5.Layers, model: Any) -> None:
    """Every weight of the Keras model, bit for bit, under its layer's name and its position, and no more."""
    wanted = {layer.name: [np.asarray(w) for w in layer.weights] for layer in model.layers if layer.weights}
    assert set(layers) == set(wanted)
    for name, arrays in wanted.items():
        assert len(layers[name]) == len(arrays)
        for got, array in zip(layers[name].values(), arrays, strict=True):
            np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
    ("weight_name", "tensor"),
    [
        ("conv1/kernel:0", "kernel"),
        ("conv1/conv1/kernel:0", "kernel"),
        ("model_1/conv1/kernel:0", "kernel"),
        ("conv1_3/kernel_1:0", "kernel"),
        ("conv1/kernel", "kernel"),
        ("conv1_W", "kernel"),
        ("conv1_W_1:0", "kernel"),
        ("conv1_b:0", "bias"),
        ("conv_dw_1/depthwise_kernel:0", "depthwise_kernel"),
        ("conv_dw_1_depthwise_kernel:0", "depthwise_kernel"),
        ("bn_conv1_gamma:0", "gamma"),
        ("bn2a_branch2a_running_mean_1:0", "moving_mean"),
        ("bn2a_branch2a_running_std_1:0", "moving_variance"),
        ("batch_normalization_1/moving_variance:0", "moving_variance"),
        ("conv1/alpha:0", "alpha:0"),
    ],
)
def test_tensor_name_is_keras_2s_whatever_version_wrote_it(
    weight_name: str, tensor: str, tmp_path: Path, write_keras_2: Callable[..., Path]
) -> None:
    path = write_keras_2(tmp_path / "w.h5", {"conv1": {"x": KERNEL}}, rename=lambda *_: weight_name)
    layers = keras_h5.read(path).layers
    assert {name: list(tensors) for name, tensors in layers.items()} == {"conv1": [tensor]}
    np.testing.assert_array_equal(layers["conv1"][tensor], KERNEL)


@pytest.mark.parametrize("group", ["/", "model_weights"])
def test_layers_keep_the_files_order(group: str, tmp_path: Path, write_keras_2: Callable[..., Path]) -> None:
    names = ["z", "conv2d_10", "conv2d_9", "a"]
    path = write_keras_2(tmp_path / "w.h5", {name: {"gamma": GAMMA} for name in names}, group=group)
    file = keras_h5.read(path)
    assert list(file.layers) == names
    assert file.version == "2.2.4"


def test_attributes_may_be_text_or_cut_in_chunks(tmp_path: Path, write_keras_2: Callable[..., Path]) -> None:
    path = write_keras_2(tmp_path / "w.h5", TWO_LAYERS)
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names0"] = ["conv1"]
        file.attrs["layer_names1"] = ["bn"]
        file["bn"].attrs["weight_names"] = ["bn/gamma:0"]
    assert list(keras_h5.read(path).layers) == ["conv1", "bn"]


def test_layers_of_a_nested_model_are_lifted_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["input_1", "mobilenet"]
        file.create_group("input_1").attrs["weight_names"] = []
        names = ["conv1/kernel:0", "bn/gamma:0"]
        file.create_group("mobilenet").attrs["weight_names"] = names
        for name, array in zip(names, (KERNEL, GAMMA), strict=True):
            file["mobilenet"][name] = array
    layers = keras_h5.read(tmp_path / "w.h5").layers
    assert {name: list(tensors) for name, tensors in layers.items()} == {"conv1": ["kernel"], "bn": ["gamma"]}


def test_data_that_no_attribute_lists_are_not_passed_over(
    tmp_path: Path, write_keras_2: Callable[..., Path]
) -> None:
    path = write_keras_2(tmp_path / "w.h5", TWO_LAYERS)
    with h5py.File(path, "a") as file:
        file["conv1/extra"] = GAMMA
        file["stray"] = GAMMA
    layers = keras_h5.read(path).layers
    assert set(layers) == {"conv1", "bn", "stray"}
    assert set(layers["conv1"]) == {"kernel", "extra"}


@pytest.mark.parametrize("layout", [".weights.h5", ".keras", ".h5"])
def test_what_keras_3_writes_is_read_bit_for_bit(
    layout: str, keras_files: dict[str, Path], keras_mobilenet: Any
) -> None:
    file = keras_h5.read(keras_files[layout])
    assert file.named
    assert_holds(file.layers, keras_mobilenet)


def test_keras_3_weights_without_layer_names_are_keyed_by_class_and_number(
    keras_files: dict[str, Path], keras_mobilenet: Any, tmp_path: Path
) -> None:
    path = strip_names(Path(shutil.copy(keras_files[".weights.h5"], tmp_path / "w.weights.h5")))
    file = keras_h5.read(path)
    assert not file.named
    convolutions = [layer for layer in keras_mobilenet.layers if type(layer).__name__ == "Conv2D"]
    keys = ["conv2d", *(f"conv2d_{i}" for i in range(1, 14))]
    assert [key for key in file.layers if key.startswith("conv2d")] == keys
    for key, layer in zip(keys, convolutions, strict=True):
        np.testing.assert_array_equal(file.layers[key]["0"], np.asarray(layer.kernel))


def test_keras_archive_without_layer_names_takes_them_from_its_config(
    keras_files: dict[str, Path], keras_mobilenet: Any, tmp_path: Path
) -> None:
    with zipfile.ZipFile(keras_files[".keras"]) as archive:
        archive.extractall(tmp_path)
    strip_names(tmp_path / "model.weights.h5")
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.write(tmp_path / name, name)
    file = keras_h5.read(tmp_path / "w.keras")
    assert file.named
    assert_holds(file.layers, keras_mobilenet)


def test_nested_models_and_the_random_state_of_dropout_in_keras_3_files(tmp_path: Path) -> None:
    import keras

    inner = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3, name="inner"), keras.layers.Dropout(0.5)]
    )
    model = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(1, name="outer")])
    for name in ("m.weights.h5", "m.keras"):
        (model.save_weights if "weights" in name else model.save)(tmp_path / name)
        layers = keras_h5.read(tmp_path / name).layers
        assert {name: sorted(tensors) for name, tensors in layers.items()} == {
            "inner": ["0", "1"],
            "outer": ["0", "1"],
        }


def test_reading_a_keras_archive_imports_no_keras(keras_files: dict[str, Path]) -> None:
    code = (
        "import sys; from weights_conversion import keras_h5; keras_h5.read(sys.argv[1]); "
        "assert not {'keras', 'tensorflow'} & sys.modules.keys()"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, str(keras_files[".keras"])], check=True, cwd=root)


def _soft_link(file: h5py.File, directory: Path) -> None:
    file["conv1/kernel"] = h5py.SoftLink("/bn/bn/gamma:0")


def _external_link(file: h5py.File, directory: Path) -> None:
    file["conv1/kernel"] = h5py.ExternalLink("other.h5", "/secret")


def _virtual(file: h5py.File, directory: Path) -> None:
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "secret", (3,))
    file.create_virtual_dataset("conv1/kernel", layout)


def _external_storage(file: h5py.File, directory: Path) -> None:
    raw = directory / "raw"
    raw.write_bytes(bytes(12))
    file.create_dataset("conv1/kernel", (3,), np.float32, external=[(str(raw), 0, 12)])


def _objects(file: h5py.File, directory: Path) -> None:
    file.create_dataset("conv1/kernel", data=["a"], dtype=h5py.string_dtype())


def _unwritten(file: h5py.File, directory: Path) -> None:
    file.create_dataset("conv1/kernel", (3,), np.float32)


def _cycle(file: h5py.File, directory: Path) -> None:
    file["conv1/again"] = file["/"]


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (_soft_link, "is a link"),
        (_external_link, "is a link"),
        (_virtual, "stored outside the file"),
        (_external_storage, "stored outside the file"),
        (_objects, "expected an array of numbers"),
        (_unwritten, "never wholly written"),
        (_cycle, "linked twice"),
    ],
)
def test_whatever_is_not_plain_numbers_inside_the_file_is_refused_by_name(
    tamper: Callable[[h5py.File, Path], None],
    reason: str,
    tmp_path: Path,
    write_keras_2: Callable[..., Path],
) -> None:
    path = write_keras_2(tmp_path / "w.h5", TWO_LAYERS)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = GAMMA
    with h5py.File(path, "a") as file:
        tamper(file, tmp_path)
    with pytest.raises(InputError, match=reason) as error:
        keras_h5.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_kernels_of_theano_are_refused(tmp_path: Path, write_keras_2: Callable[..., Path]) -> None:
    path = write_keras_2(tmp_path / "w.h5", TWO_LAYERS, backend="theano")
    with pytest.raises(InputError, match="Theano, whose kernels are flipped"):
        keras_h5.read(path)


def test_a_tensor_given_twice_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["conv1"]
        file.create_group("conv1").attrs["weight_names"] = ["conv1/kernel:0", "conv1/kernel_1:0"]
        file["conv1/conv1/kernel:0"] = KERNEL
        file["conv1/conv1/kernel_1:0"] = KERNEL
    with pytest.raises(InputError, match="conv1/kernel occurs twice"):
        keras_h5.read(tmp_path / "w.h5")


def test_a_file_that_claims_too_much_is_refused_unread(
    tmp_path: Path, write_keras_2: Callable[..., Path]
) -> None:
    path = write_keras_2(tmp_path / "w.h5", TWO_LAYERS)
    with h5py.File(path, "a") as file:
        bomb = file.create_dataset("bomb", (2**20, 2**20), np.float32, chunks=(1, 2**20), compression="gzip")
        bomb[0] = 0
    with pytest.raises(InputError, match="claims 4,398,0"):
        keras_h5.read(path)


class Exploding:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["absent", "directory", "empty", "noise", "pickle", "text", "zip", "other h5"]
)
def test_what_is_no_keras_file_gets_one_line(name: str, tmp_path: Path) -> None:
    path, trace = tmp_path / name, tmp_path / "trace"
    if name == "directory":
        path.mkdir()
    elif name == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x", "y")
    elif name == "other h5":
        with h5py.File(path, "w") as file:
            file["x"] = GAMMA
    elif name != "absent":
        contents = {
            "empty": b"",
            "noise": np.random.default_rng(0).bytes(5000),
            "pickle": pickle.dumps(Exploding(trace)),
            "text": b"<html>not found</html>",
        }
        path.write_bytes(contents[name])
    with pytest.raises(InputError) as error:
        keras_h5.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize("layout", [".weights.h5", ".keras", ".h5"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_gets_one_line(
    layout: str, share: float, keras_files: dict[str, Path], tmp_path: Path
) -> None:
    contents = keras_files[layout].read_bytes()
    path = tmp_path / f"w{layout}"
    path.write_bytes(contents[: int(share * len(contents))])
    with pytest.raises(InputError, match="truncated") as error:
        keras_h5.read(path)
    assert "\n" not in str(error.value)


def test_flipped_bytes_give_arrays_or_one_line_but_never_another_error(
    tmp_path: Path, write_keras_2: Callable[..., Path]
) -> None:
    contents = write_keras_2(tmp_path / "w.h5", TWO_LAYERS).read_bytes()
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(100):
        damaged = bytearray(contents)
        for place in rng.integers(len(contents), size=4):
            damaged[place] = rng.integers(256)
        (tmp_path / "damaged.h5").write_bytes(damaged)
        try:
            keras_h5.read(tmp_path / "damaged.h5")
        except InputError as error:
            errors.append(str(error))
    assert len(errors) > 10
    assert not any("\n" in error for error in errors)
