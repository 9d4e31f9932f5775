"""Files in the layouts that Keras has written over the years."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")

import h5py
import numpy as np
import pytest

from weights_conversion import convert

Layers = dict[str, dict[str, np.ndarray]]
SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "weights").is_dir():
        pytest.skip("needs the real weight files in ../shared/weights")
    return SHARED


@pytest.fixture(scope="session")
def write_keras_2() -> Callable[..., Path]:
    """Writes layers as Keras 2 does; `rename` maps (layer, tensor) to the name of the weight."""

    def write(
        path: Path,
        layers: Layers,
        *,
        rename: Callable[[str, str], str] = lambda layer, tensor: f"{layer}/{tensor}:0",
        group: str = "/",
        backend: str = "tensorflow",
    ) -> Path:
        with h5py.File(path, "w") as file:
            root = file.require_group(group)
            root.attrs["layer_names"] = np.array([name.encode() for name in layers])
            root.attrs["keras_version"] = np.bytes_("2.2.4")
            root.attrs["backend"] = np.bytes_(backend)
            for layer, tensors in layers.items():
                names = [rename(layer, tensor) for tensor in tensors]
                root.create_group(layer).attrs["weight_names"] = np.array([name.encode() for name in names])
                for name, array in zip(names, tensors.values(), strict=True):
                    root[layer].create_dataset(name, data=array)
        return path

    return write


@pytest.fixture(scope="session")
def random_layers() -> Callable[..., Layers]:
    """Random float32 tensors of a backbone: what a good file of it holds."""

    def make(backbone: str, alpha: float = 1.0, include_top: bool = False) -> Layers:
        rng = np.random.default_rng(0)
        return {
            layer: {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
            for layer, tensors in convert.expected_shapes(backbone, alpha, include_top).items()
        }

    return make


@pytest.fixture(scope="session")
def mobilenet_layers(random_layers: Callable[..., Layers]) -> Layers:
    return random_layers("mobilenet", 0.25)


@pytest.fixture(scope="session")
def build_keras() -> Callable[..., Any]:
    """A model of keras.applications with random values everywhere, moving statistics included."""
    import keras

    def build(name: str, **arguments: Any) -> Any:
        # Keras compiles a program for every kernel shape that it draws; zeros are instant.
        with mock.patch.object(
            keras.initializers.VarianceScaling,
            "__call__",
            lambda self, shape, dtype=None: np.zeros(shape, dtype),
        ):
            model = getattr(keras.applications, name)(weights=None, **arguments)
        rng = np.random.default_rng(0)
        for weight in model.weights:
            weight.assign(rng.normal(size=weight.shape).astype(np.float32))
        return model

    return build


@pytest.fixture(scope="session")
def keras_mobilenet(build_keras: Callable[..., Any]) -> Any:
    return build_keras("MobileNet", alpha=0.25, include_top=False, input_shape=(96, 96, 3))


@pytest.fixture(scope="session")
def keras_files(keras_mobilenet: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`keras_mobilenet` in every layout that Keras 3 writes, optimizer state and all."""
    directory = tmp_path_factory.mktemp("keras")
    keras_mobilenet.compile("adam", "mse", metrics=["mae"])
    keras_mobilenet.optimizer.build(keras_mobilenet.trainable_variables)
    files = {name: directory / f"mobilenet{name}" for name in (".weights.h5", ".keras", ".h5")}
    keras_mobilenet.save_weights(files[".weights.h5"])
    keras_mobilenet.save(files[".keras"])
    keras_mobilenet.save(files[".h5"])
    return files
