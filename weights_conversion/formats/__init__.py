"""What every format of an exported model shares; a file here for each says how it is written and predicts.

One convention for all: `images`, float32 [N, image_size, image_size, 3], RGB of 0..255, to `probabilities`,
float32 [N, classes]. Scaling and softmax are inside. A safetensors file holds arrays alone.

Each file has `write(model, metadata, path)` and `predict(path, images)`, by the format's own runtime.
"""

import dataclasses
import json
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from fer_jax.data import preprocessing
from fer_jax.saved_model import SavedModel, Spec

SCALINGS = {
    "unit": "x / 255",
    "tf": "x / 127.5 - 1",
    "caffe": f"channels to BGR, minus {preprocessing.IMAGENET_MEANS_BGR}",
}


def describe(saved: SavedModel) -> dict[str, str]:
    """What a user of the exported file must know; "classes" and "spec" are JSON."""
    spec, size, classes = saved.spec, saved.spec.image_size, len(saved.spec.class_names)
    learnt_from = f"{spec.side}x{spec.side} pixels, {'grey' if spec.channels == 1 else 'RGB'}"
    return {
        "title": str(spec.provenance.get("title", spec.backbone)),
        "classes": json.dumps(spec.class_names),
        "input": f"images: float32 [N, {size}, {size}, 3], RGB, 0 to 255, before scaling; grey repeated",
        "output": f"probabilities: float32 [N, {classes}]",
        "resize": f"a face to {learnt_from}, bilinear, antialiased, as by Pillow; "
        f"from there to {size}x{size}, bilinear, half-pixel centres, no antialiasing, as tf.image.resize",
        "scaling": SCALINGS[spec.scaling],
        "licence": licence(spec),
        "sha256": saved.sha256,
        "spec": json.dumps(dataclasses.asdict(spec)),
    }


def licence(spec: Spec) -> str:
    """The licence of the weights that the backbone started from, which goes with whatever is made of them."""
    weights = (spec.provenance.get("init") or {}).get("weights")
    return str(weights["licence"]) if weights else "no pretrained weights inside"


def named_tensors(variables: Any) -> dict[str, np.ndarray]:
    """Variables under flat names, Keras's: "conv1/kernel"; the head's layers behind "head_"."""
    return {
        f"{'head_' if part == 'head' else ''}{layer}/{tensor}": array
        for (_, part, layer, tensor), array in flatten_dict(variables).items()
    }
