"""Transfer learning for facial emotion recognition on JAX."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer_jax.predictor import Predictor


def load(directory: str | Path) -> "Predictor":
    """Loads a trained model, ready to predict: `fer_jax.load("runs/openface").predict(["photo.jpg"])`.

    Args:
      directory: of a run of `python -m fer_jax.main`, or its model.safetensors.

    Returns:
      A `fer_jax.predictor.Predictor`.

    Raises:
      InputError: there is no model, or it is damaged.
    """
    from fer_jax import predictor, saved_model  # here, so that commands that need no JAX start at once

    return predictor.Predictor(saved_model.load(directory))
