"""safetensors: all tensors under Keras's names, "conv1/kernel", with the metadata in the header."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import safe_open

from fer_jax.files import write_tensors
from fer_jax.saved_model import SavedModel, Spec
from weights_conversion.formats import named_tensors


def write(saved: SavedModel, metadata: dict[str, str], path: Path) -> None:
    """Writes the tensors; moving statistics lie beside gamma and beta of their layer."""
    write_tensors(named_tensors(saved.variables), path, metadata)


def predict(path: Path, images: np.ndarray) -> np.ndarray:
    """By fer_jax, from the tensors and metadata of the file."""
    with safe_open(path, "numpy") as file:
        spec = Spec.from_json(file.metadata()["spec"])
        variables = to_variables({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return np.asarray(jax.jit(spec.predictor())(variables, images))


def to_variables(tensors: dict[str, np.ndarray]) -> Any:
    """The inverse of `named_tensors`."""

    def path(name: str) -> tuple[str, ...]:
        layer, tensor = name.split("/")
        part = "head" if layer.startswith("head_") else "backbone"
        collection = "batch_stats" if tensor.startswith("moving_") else "params"
        return collection, part, layer.removeprefix("head_"), tensor

    return unflatten_dict({path(name): array for name, array in tensors.items()})
