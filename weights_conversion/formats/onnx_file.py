"""ONNX through jax2onnx, of any batch size, with the metadata among the model's properties."""

import functools
import logging
from pathlib import Path

import jax2onnx
import numpy as np
import onnx
import onnxruntime

from fer_jax.models.tracing import library_only
from fer_jax.saved_model import SavedModel

OPSET = 21


def write(saved: SavedModel, metadata: dict[str, str], path: Path) -> None:
    """Converts the model, and lets ONNX's checker look at it."""
    # They tell, at length, of plugins for other packages that do not load, and of shapes left open.
    for talker in ("jax2onnx", "onnx_ir"):
        logging.getLogger(talker).setLevel(logging.ERROR)
    spec = saved.spec
    with library_only():
        model = jax2onnx.to_onnx(
            functools.partial(spec.predictor(), saved.variables),
            [("N", spec.image_size, spec.image_size, 3)],
            model_name=spec.backbone,
            opset=OPSET,
            input_names=["images"],
            output_names=["probabilities"],
        )
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def predict(path: Path, images: np.ndarray) -> np.ndarray:
    """By ONNX Runtime on CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], {"images": images})[0])
