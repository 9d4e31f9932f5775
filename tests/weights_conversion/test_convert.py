"""The conversion: real files against Keras, strictness, names of other times, the command."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest
from PIL import Image

import weights_conversion
from fer_jax import files, models
from fer_jax.errors import InputError
from weights_conversion import convert, export, keras_h5, store

Layers = dict[str, dict[str, np.ndarray]]
INCOMPLETE = "mobilenet_1_0_224_tf_no_top_incomplete.h5"


def assert_same(variables: store.Variables, layers: Layers) -> None:
    """Every tensor bit for bit, float32, in the collection where the module looks for it."""
    got = {
        f"{layer}/{tensor}": (collection, array)
        for collection, of_layer in variables.items()
        for layer, tensors in of_layer.items()
        for tensor, array in tensors.items()
    }
    assert set(got) == {f"{layer}/{tensor}" for layer, tensors in layers.items() for tensor in tensors}
    for name, (collection, array) in got.items():
        layer, tensor = name.split("/")
        assert collection == ("batch_stats" if tensor.startswith("moving_") else "params")
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, layers[layer][tensor])


def relative_difference(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.fixture(scope="session")
def portrait(shared: Path) -> np.ndarray:
    """float32 [1, 224, 224, 3] in -1..1."""
    image = (
        Image.open(shared / "photos" / "grace_hopper.bmp").convert("RGB").resize((224, 224), Image.BILINEAR)
    )
    return np.asarray(image, np.float32)[None] / 127.5 - 1


def test_full_model_with_classifier_gives_keras_outputs_and_top_5(
    shared: Path, portrait: np.ndarray, build_keras: Callable[..., Any], tmp_path: Path
) -> None:
    source = shared / "weights" / "mobilenet_2_5_224_full_model.h5"
    convert.convert("mobilenet", source, tmp_path / "w", alpha=0.25, include_top=True)
    module = models.build("mobilenet", alpha=0.25, include_top=True)
    ours = jax.jit(module.apply)(weights_conversion.load(tmp_path / "w"), portrait)
    keras_model = build_keras("MobileNet", alpha=0.25)
    keras_model.load_weights(source)
    assert np.argsort(ours[0])[::-1][:5].tolist() == [457, 400, 834, 652, 667]
    assert relative_difference(ours, keras_model.predict_on_batch(portrait)) <= 1e-5


def test_features_of_alpha_0_75_are_keras_features(
    shared: Path, portrait: np.ndarray, build_keras: Callable[..., Any], tmp_path: Path
) -> None:
    source = shared / "weights" / "mobilenet_7_5_224_tf_no_top.h5"
    convert.convert("mobilenet", source, tmp_path / "w", alpha=0.75)
    module = models.build("mobilenet", alpha=0.75)
    ours = jax.jit(module.apply)(weights_conversion.load(tmp_path / "w"), portrait)
    keras_model = build_keras("MobileNet", alpha=0.75, include_top=False, input_shape=(224, 224, 3))
    keras_model.load_weights(source)
    theirs = keras_model.predict_on_batch(portrait)
    assert np.linalg.norm(theirs) > 1
    assert relative_difference(ours, theirs) <= 1e-5


def test_full_model_without_classifier_is_the_no_top_file(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights"
    full = convert.convert(
        "mobilenet", weights / "mobilenet_2_5_224_full_model.h5", tmp_path / "full", alpha=0.25
    )
    convert.convert("mobilenet", weights / "mobilenet_2_5_224_tf_no_top.h5", tmp_path / "no_top", alpha=0.25)
    assert full["left_out"] == ["conv_preds"]
    assert full["keras_version"] == "2.2.4-tf"
    no_top = weights_conversion.load(tmp_path / "no_top")
    layers = {
        name: tensors | no_top["batch_stats"].get(name, {}) for name, tensors in no_top["params"].items()
    }
    assert_same(weights_conversion.load(tmp_path / "full"), layers)


def test_incomplete_file_is_refused_by_name_and_filled_only_on_demand(shared: Path, tmp_path: Path) -> None:
    source = shared / "weights" / INCOMPLETE
    with pytest.raises(InputError, match="1 tensor at fault:\n  conv_pw_13/kernel: missing") as error:
        convert.convert("mobilenet", source, tmp_path / "w")
    assert str(source) in str(error.value)
    assert not list(tmp_path.iterdir())

    convert.convert("mobilenet", source, tmp_path / "w", allow_missing=["conv_pw_13/kernel"], seed=7)
    metadata = weights_conversion.load_metadata(tmp_path / "w")
    assert metadata["initialised"] == [
        {"tensor": "conv_pw_13/kernel", "initialiser": "glorot_uniform", "seed": 7}
    ]
    assert "conv_pw_13/kernel NOT from the file but initialised with seed 7" in weights_conversion.describe(
        metadata
    )
    kernel = weights_conversion.load(tmp_path / "w")["params"]["conv_pw_13"]["kernel"]
    np.testing.assert_array_equal(kernel, convert.initialise("conv_pw_13", "kernel", (1, 1, 1024, 1024), 7))


def test_every_offender_is_listed_at_once_and_nothing_is_written(
    mobilenet_layers: Layers, write_keras_2: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {name: dict(tensors) for name, tensors in mobilenet_layers.items()}
    del layers["conv1_bn"]["beta"]
    del layers["conv_dw_3"]
    layers["conv_dw_2"]["bias"] = np.zeros(16, np.float32)
    layers["surprise"] = {"kernel": np.zeros((2, 2), np.float32)}
    layers["conv1"]["kernel"] = layers["conv1"]["kernel"].transpose(3, 2, 0, 1)
    layers["conv_pw_1"]["kernel"] = layers["conv_pw_1"]["kernel"].astype(np.float64)
    layers["conv_pw_2"]["kernel"] = layers["conv_pw_2"]["kernel"].astype(np.float16)
    layers["conv_pw_3"]["kernel"] = layers["conv_pw_3"]["kernel"].astype(np.int32)
    layers["conv_pw_4"]["kernel"] = np.full_like(layers["conv_pw_4"]["kernel"], np.nan)
    layers["conv_pw_5_bn"]["gamma"] = layers["conv_pw_5_bn"]["gamma"].copy()
    layers["conv_pw_5_bn"]["gamma"][3] = np.inf
    source = write_keras_2(tmp_path / "w.h5", layers)
    with pytest.raises(InputError) as error:
        convert.convert("mobilenet", source, tmp_path / "deep" / "out", alpha=0.25)
    headline, *lines = str(error.value).splitlines()
    assert headline == f"{source} does not fit mobilenet alpha 0.25, 10 tensors at fault:"
    assert sorted(line.strip() for line in lines) == [
        "conv1/kernel: shape (8, 3, 3, 3), expected (3, 3, 3, 8)",
        "conv1_bn/beta: missing, expected shape (8,)",
        "conv_dw_2/bias: unexpected, shape (16,)",
        "conv_dw_3/depthwise_kernel: missing, expected shape (3, 3, 32, 1)",
        "conv_pw_1/kernel: dtype float64, expected float32",
        "conv_pw_2/kernel: dtype float16, expected float32",
        "conv_pw_3/kernel: dtype int32, expected float32",
        f"conv_pw_4/kernel: {32 * 64} values are NaN or infinite",
        "conv_pw_5_bn/gamma: 1 values are NaN or infinite",
        "surprise/kernel: unexpected, shape (2, 2)",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["w.h5"]


def test_weights_of_another_backbone_or_width_are_refused(
    mobilenet_layers: Layers, write_keras_2: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_keras_2(tmp_path / "w.h5", mobilenet_layers)
    for backbone, alpha in (("mobilenet", 0.5), ("openface", 1.0), ("resnet50", 1.0), ("vggface", 1.0)):
        with pytest.raises(InputError, match="does not fit"):
            convert.convert(backbone, source, tmp_path / "out", alpha=alpha)
    with pytest.raises(InputError, match="openface has no width multiplier"):
        convert.convert("openface", source, tmp_path / "out", alpha=0.25)
    with pytest.raises(InputError, match="openface has no classifier with weights"):
        convert.convert("openface", source, tmp_path / "out", include_top=True)
    assert not (tmp_path / "out").exists()


def test_big_endian_float32_is_float32(
    mobilenet_layers: Layers, write_keras_2: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {
        name: {k: v.astype(">f4") for k, v in tensors.items()} for name, tensors in mobilenet_layers.items()
    }
    convert.convert("mobilenet", write_keras_2(tmp_path / "w.h5", layers), tmp_path / "out", alpha=0.25)
    assert_same(weights_conversion.load(tmp_path / "out"), mobilenet_layers)


@pytest.mark.parametrize("backbone", ["openface", "resnet50"])
def test_keras_2_files_of_the_other_backbones(
    backbone: str, random_layers: Callable[..., Layers], write_keras_2: Callable[..., Path], tmp_path: Path
) -> None:
    layers = random_layers(backbone)
    result = convert.convert(backbone, write_keras_2(tmp_path / "w.h5", layers), tmp_path / "out")
    assert_same(weights_conversion.load(tmp_path / "out"), layers)
    assert result["parameters"] == {"openface": 3_743_280, "resnet50": 23_587_712}[backbone]


@pytest.mark.parametrize("layout", [".weights.h5", ".keras", ".h5"])
def test_what_keras_3_writes_converts_to_what_keras_holds(
    layout: str, keras_files: dict[str, Path], keras_mobilenet: Any, tmp_path: Path
) -> None:
    convert.convert("mobilenet", keras_files[layout], tmp_path / "out", alpha=0.25)
    depthwise = {f"conv_dw_{i}" for i in range(1, 14)}
    layers = {
        layer.name: {
            "depthwise_kernel" if layer.name in depthwise else weight.name: np.asarray(weight)
            for weight in layer.weights
        }
        for layer in keras_mobilenet.layers
        if layer.weights
    }
    assert_same(weights_conversion.load(tmp_path / "out"), layers)


@pytest.mark.parametrize("backbone", ["MobileNet", "ResNet50"])
def test_keras_3_weights_without_layer_names_are_told_apart_by_class_and_number(
    backbone: str, build_keras: Callable[..., Any], tmp_path: Path
) -> None:
    arguments = {"alpha": 0.25} if backbone == "MobileNet" else {}
    build_keras(backbone, **arguments).save_weights(tmp_path / "named.weights.h5")
    unnamed = shutil.copy(tmp_path / "named.weights.h5", tmp_path / "unnamed.weights.h5")
    with h5py.File(unnamed, "a") as file:
        for group in file["layers"].values():
            if "vars" in group:
                del group["vars"].attrs["name"]
    name, alpha = backbone.lower(), arguments.get("alpha", 1.0)
    with_top = convert.expected_shapes(name, alpha, include_top=True)
    named, found = (
        convert.name_as_expected(keras_h5.read(path), name, with_top, path)
        for path in (tmp_path / "named.weights.h5", unnamed)
    )
    assert set(found) == set(named) == set(with_top)
    assert convert.check_tensors(found, with_top, [], "") == []
    for layer, tensors in named.items():
        for tensor, array in tensors.items():
            np.testing.assert_array_equal(found[layer][tensor], array)


def test_positions_are_not_guessed_where_a_layer_lacks_a_tensor(
    keras_files: dict[str, Path], tmp_path: Path
) -> None:
    path = shutil.copy(keras_files[".weights.h5"], tmp_path / "w.weights.h5")
    with h5py.File(path, "a") as file:
        del file["layers/batch_normalization/vars/3"]
    missing = ["conv1_bn/moving_variance", "conv1_bn/moving_mean", "conv1_bn/beta", "conv1_bn/gamma"]
    with pytest.raises(InputError, match="3 tensors at fault:\n  conv1_bn/0: unexpected"):
        convert.convert("mobilenet", path, tmp_path / "out", alpha=0.25, allow_missing=missing)


def old_resnet_name(layer: str) -> str:
    """Names of Keras's ResNet50 before 2019, written out from its builder's rules."""
    if layer in ("conv1_conv", "conv1_bn", "predictions"):
        return {"conv1_conv": "conv1", "conv1_bn": "bn_conv1", "predictions": "fc1000"}[layer]
    stack, block, place, kind = layer.split("_")
    branch = {"0": "1", "1": "2a", "2": "2b", "3": "2c"}[place]
    letter = "abcdef"[int(block.removeprefix("block")) - 1]
    return f"{'res' if kind == 'conv' else 'bn'}{stack.removeprefix('conv')}{letter}_branch{branch}"


def test_older_resnet_files_with_keras_1_names_give_the_same_weights(
    random_layers: Callable[..., Layers], write_keras_2: Callable[..., Path], tmp_path: Path
) -> None:
    layers = random_layers("resnet50")
    old_tensors = {
        "kernel": "W",
        "bias": "b",
        "moving_mean": "running_mean",
        "moving_variance": "running_std",
    }
    old_layers = {old_resnet_name(layer): tensors for layer, tensors in layers.items()}
    old_layers["fc1000"] = {"kernel": np.zeros((2048, 1000), np.float32), "bias": np.zeros(1000, np.float32)}
    assert {"res2a_branch1", "bn2a_branch1", "res3d_branch2b", "bn5c_branch2c"} <= old_layers.keys()
    source = write_keras_2(
        tmp_path / "w.h5",
        old_layers,
        rename=lambda layer, tensor: f"{layer}_{old_tensors.get(tensor, tensor)}:0",
    )
    result = convert.convert("resnet50", source, tmp_path / "out")
    assert result["left_out"] == ["predictions"]
    assert_same(weights_conversion.load(tmp_path / "out"), layers)


@pytest.mark.parametrize("first", [0, 1, 17])
def test_unnamed_convolutions_of_vggface_go_by_order(first: int) -> None:
    expected = convert.expected_shapes("vggface", include_top=True)
    # Views of single numbers: 0.6 GB otherwise.
    kernels = [
        np.broadcast_to(np.float32(i), tensors["kernel"]) for i, tensors in enumerate(expected.values())
    ]
    names = [f"conv2d_{i}" if i else "conv2d" for i in range(first, first + 16)]
    layers = {
        name: {"kernel": kernel, "bias": np.zeros(kernel.shape[-1], np.float32)}
        for name, kernel in zip(names, kernels, strict=True)
    }
    found = convert.name_as_expected(keras_h5.KerasFile(layers, True, ""), "vggface", expected, "w.h5")
    assert list(found) == [
        *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
        *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7", "fc8"),
    ]
    assert [tensors["kernel"].flat[0] for tensors in found.values()] == list(range(16))
    assert {name: tensors["kernel"].shape for name, tensors in found.items()} == {
        name: tensors["kernel"] for name, tensors in expected.items()
    }
    del layers[names[3]]
    with pytest.raises(InputError, match=r"w\.h5: 15 unnamed convolutions .* expected the 16 of vggface"):
        convert.name_as_expected(keras_h5.KerasFile(layers, True, ""), "vggface", expected, "w.h5")


@pytest.mark.parametrize("shape", [(1, 1, 64, 32), (3, 3, 64, 1), (50, 7)])
def test_missing_kernels_are_drawn_as_keras_draws_them(shape: tuple[int, ...]) -> None:
    from keras.src.initializers.random_initializers import compute_fans

    tensor = "depthwise_kernel" if shape[-1] == 1 else "kernel"
    ours = convert.initialise("layer", tensor, shape, seed=3)
    limit = np.sqrt(6 / sum(compute_fans(shape)))
    assert ours.dtype == np.float32
    assert 0.95 * limit < np.abs(ours).max() <= limit
    assert np.std(ours) == pytest.approx(limit / np.sqrt(3), rel=0.1)  # of a uniform distribution
    np.testing.assert_array_equal(ours, convert.initialise("layer", tensor, shape, seed=3))
    assert not np.array_equal(ours, convert.initialise("layer", tensor, shape, seed=4))
    assert not np.array_equal(ours, convert.initialise("other", tensor, shape, seed=3))


def test_missing_vectors_start_as_keras_starts_them() -> None:
    values = {"bias": 0, "beta": 0, "moving_mean": 0, "gamma": 1, "moving_variance": 1}
    for tensor, value in values.items():
        np.testing.assert_array_equal(
            convert.initialise("layer", tensor, (4,), 0), np.full(4, value, np.float32), strict=True
        )


def test_allow_missing_refuses_a_name_that_no_tensor_has(
    mobilenet_layers: Layers, write_keras_2: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_keras_2(tmp_path / "w.h5", mobilenet_layers)
    with pytest.raises(InputError, match="no such tensor conv_pw_14/kernel"):
        convert.convert(
            "mobilenet", source, tmp_path / "out", alpha=0.25, allow_missing=["conv_pw_14/kernel"]
        )


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_key_has_is_refused(seed: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--seed: expected 0 to 4294967295, got {seed}"):
        convert.convert("mobilenet", tmp_path / "w.h5", tmp_path / "out", seed=seed)


def test_converted_weights_are_replaced_only_on_demand_and_nothing_else_ever(
    mobilenet_layers: Layers, write_keras_2: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_keras_2(tmp_path / "w.h5", mobilenet_layers)
    out = tmp_path / "out"
    convert.convert("mobilenet", source, out, alpha=0.25, licence="first")
    with pytest.raises(InputError, match="expected a new directory or --overwrite"):
        convert.convert("mobilenet", source, out, alpha=0.25)
    convert.convert("mobilenet", source, out, alpha=0.25, licence="second", overwrite=True)
    assert weights_conversion.load_metadata(out)["licence"] == "second"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and holds no converted weights"):
        convert.convert("mobilenet", source, out, alpha=0.25, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "w.h5"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(convert.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-m", "weights_conversion.convert", *arguments],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_command_converts_and_reports(
    mobilenet_layers: Layers, write_keras_2: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = write_keras_2(tmp_path / "w.h5", mobilenet_layers), tmp_path / "a" / "out"
    result = command("--backbone=mobilenet", "--alpha=0.25", f"--input={source}", f"--output={out}")
    assert result.returncode == 0, result.stderr
    metadata = json.loads((out / "weights.json").read_text())
    assert metadata["source_sha256"] == files.digest(source)
    for text in (metadata["source_sha256"], metadata["licence"], "218,544", "135", str(out)):
        assert text in result.stdout
    assert_same(weights_conversion.load(out), mobilenet_layers)


def test_a_directory_whose_name_is_no_text_is_told_escaped(
    mobilenet_layers: Layers,
    write_keras_2: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    source, out = write_keras_2(tmp_path / "w.h5", mobilenet_layers), os.fsdecode(b"v\xe9")
    arguments = ("--backbone=mobilenet", "--alpha=0.25", f"--input={source}", f"--output={tmp_path / out}")
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith(r"v\udce9")


def test_command_ends_with_status_2_and_no_traceback_but_for_debug(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"nothing of the kind")
    arguments = ("--backbone=mobilenet", f"--input={tmp_path / 'w.h5'}", f"--output={tmp_path / 'out'}")
    plain, debug = command(*arguments), command(*arguments, "--debug")
    assert plain.returncode == 2
    assert plain.stderr.startswith(f"error: {tmp_path / 'w.h5'}: truncated, or no Keras")
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr
    assert not (tmp_path / "out").exists()


def test_an_alpha_that_there_is_not_is_named_before_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        convert.main(["--backbone=mobilenet", "--alpha=nan", f"--input={tmp_path / 'none.h5'}"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: alpha: nan, expected ")
    with pytest.raises(InputError, match="alpha: nan, expected "):
        convert.convert("mobilenet", tmp_path / "none.h5", tmp_path / "out", alpha=float("nan"))


def test_a_wrong_flag_ends_with_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for main, flag in ((convert.main, "--alpha=abc"), (export.main, "--format=abc")):
        with pytest.raises(SystemExit) as end:
            main([flag])
        assert end.value.code == 2
        assert re.fullmatch(f"error: argument {flag[:-4]}: invalid .*\n", capsys.readouterr().err)
