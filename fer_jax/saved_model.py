"""A trained model as one file: RUN/model.safetensors, all variables with what is needed to use them.

Arrays are named "params/backbone/conv1/kernel", "batch_stats/head/batch_normalization/moving_mean"; the
header's metadata hold the `Spec` as JSON. Nothing else of the run is read to predict.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from fer_jax import compilation, models
from fer_jax.data import preprocessing
from fer_jax.errors import InputError
from fer_jax.files import digest, replacing, write_tensors
from fer_jax.models.classifier import Classifier, Head

FILE = "model.safetensors"
FORMAT = "fer_jax model 1"


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a model is, beside its weights.

    Attributes:
      backbone, alpha, image_size: see `fer_jax.models.build`; the size in pixels.
      pooling, batch_norm, hidden: of the head, see `fer_jax.models.classifier.Head`.
      scaling: of the input, see `fer_jax.data.preprocessing.scale`.
      class_names: in the order of the outputs.
      side, channels: of the faces it was trained on: pixels, and 1 (grey) or 3 (RGB).
      provenance: for people: title, init, data, revision, accuracy, ...
    """

    backbone: str
    alpha: float
    image_size: int
    pooling: str
    batch_norm: bool
    hidden: tuple[int, ...]
    scaling: str
    class_names: tuple[str, ...]
    side: int
    channels: int
    provenance: dict[str, Any]

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """From the JSON of its fields."""
        fields = json.loads(text)
        kinds = {"hidden": tuple, "class_names": tuple, "provenance": dict}
        return cls(**fields | {name: kind(fields[name]) for name, kind in kinds.items()})

    def module(self) -> Classifier:
        """The Flax module, in inference mode: float32 [N, image_size, image_size, 3], scaled, to logits."""
        backbone = models.build(self.backbone, alpha=self.alpha, image_size=self.image_size)
        head = Head(len(self.class_names), self.pooling, self.batch_norm, self.hidden)
        return Classifier(backbone, head)

    def predictor(self) -> Callable[[Any, jax.Array], jax.Array]:
        """(variables, images) to probabilities [N, classes]: scaling, `module`, softmax; traceable.

        Images are RGB of 0..255, float32 [N, image_size, image_size, 3].
        """
        module = self.module()

        def predict(variables: Any, images: jax.Array) -> jax.Array:
            logits: Any = module.apply(variables, preprocessing.scale(images, self.scaling))
            return jax.nn.softmax(logits)

        return predict

    def abstract_variables(self) -> Any:
        """The variables of `module` as a tree of `jax.ShapeDtypeStruct`; nothing is computed."""
        image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32)
        return models.variables_for(self.module(), image)


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model read back: `variables` {"params", "batch_stats"} of float32 arrays, sha256 of the file."""

    spec: Spec
    variables: Any
    sha256: str


def save(path: Path, spec: Spec, variables: Any) -> None:
    """Writes a model; the file is there whole or not at all.

    Args:
      variables: {"params", "batch_stats"}, each {"backbone": {layer: {tensor: array}}, "head": ...}.
    """
    flat = flatten_dict(variables, sep="/")
    arrays = {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in flat.items()}
    metadata = {"format": FORMAT, "spec": json.dumps(dataclasses.asdict(spec))}
    with replacing(path) as temporary:
        write_tensors(arrays, temporary, metadata)


def load(path: str | Path) -> SavedModel:
    """Reads a model.

    Args:
      path: the directory of a run, or the file.

    Raises:
      InputError: there is none, or it is damaged, not ours, or does not fit what it says it is; or JAX finds
        no device.
    """
    compilation.check_device()
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        hint = "; start the run again to have it written" if (path / "run.json").is_file() else ""
        raise InputError(f"{file}: no such file, expected a trained model{hint}")
    try:
        with safe_open(file, "numpy") as content:
            metadata = content.metadata() or {}
            if metadata.get("format") != FORMAT:  # before arrays of types that NumPy has not are read
                raise InputError(f"{file}: expected a model written by fer_jax.main ({FORMAT})")
            flat = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a safetensors file, or damaged ({error})") from error
    try:
        spec = Spec.from_json(metadata["spec"])
        abstract = flatten_dict(spec.abstract_variables(), sep="/")
    except InputError:
        raise
    except Exception as error:  # whatever a spec that lacks fields or has others, or other types, raises
        raise InputError(f"{file}: its spec is not as fer_jax.main writes it ({error!r})") from error
    variables = {"params": {}, "batch_stats": {}} | unflatten_dict(flat, sep="/")
    _check(file, spec, {name: leaf.shape for name, leaf in abstract.items()}, flat)
    return SavedModel(spec, variables, digest(file))


def _check(file: Path, spec: Spec, expected: dict[str, tuple[int, ...]], flat: dict[str, np.ndarray]) -> None:
    found = {name: array.shape for name, array in flat.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{file}: {len(wrong)} arrays do not fit {spec.backbone}, such as {name}: "
            f"{found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
        )
    if not all(np.isfinite(array).all() for array in flat.values()):
        raise InputError(f"{file}: holds values that are no numbers, as after a training that diverged")
