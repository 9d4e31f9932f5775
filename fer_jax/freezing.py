"""Which layers learn: from layer names to the optax partition. The label tree is the single truth."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import optax
from clu import parameter_overview

from fer_jax.errors import InputError

log = logging.getLogger(__name__)

LEARNING, FROZEN = "learning", "frozen"
MODES = ("last", "all", "layers", "none")


def check_mode(mode: str) -> None:
    """Raises InputError for a mode that is none of `MODES`."""
    if mode not in MODES:
        raise InputError(f"freeze.mode: unknown {mode!r}, expected one of {', '.join(MODES)}")


def learning_layers(
    names: Sequence[str], mode: str, *, last: int = 4, layers: Sequence[str] = ()
) -> frozenset[str]:
    """Names of the backbone's layers that learn.

    Args:
      names: the backbone's layers in Keras's order.
      mode: "last" freezes all but the `last` layers (the paper: 4), "all" every layer, "layers" those
        named in `layers`, "none" no layer.

    Raises:
      InputError: an unknown mode or layer, or a `last` out of range.
    """
    check_mode(mode)
    if mode == "last":
        if not 0 <= last <= len(names):
            raise InputError(f"freeze.last: expected 0 to {len(names)}, got {last}")
        return frozenset(names[len(names) - last :])
    if mode == "all":
        return frozenset()
    if mode == "none":
        return frozenset(names)
    unknown = [name for name in layers if name not in names]
    if unknown or not layers:
        what = f"no layer named {', '.join(unknown)}" if unknown else "no layer named"
        raise InputError(f"freeze.layers: {what}; expected names such as {', '.join(names[:3])}")
    return frozenset(names) - frozenset(layers)


def labels(params: Any, learning: frozenset[str]) -> Any:
    """Tree like `params` ({"backbone": {layer: ...}, "head": ...}) with a label at every leaf."""

    def fill(tree: Any, label: str) -> Any:
        return jax.tree.map(lambda _: label, tree)

    backbone = {
        name: fill(tensors, LEARNING if name in learning else FROZEN)
        for name, tensors in params["backbone"].items()
    }
    return {"backbone": backbone, "head": fill(params["head"], LEARNING)}


def partition(inner: optax.GradientTransformation, params: Any, learning: frozenset[str]) -> Any:
    """`inner` on the leaves that learn, zero updates and no state on the frozen ones.

    Under jit XLA drops the gradients whose updates are zero, so the backward pass ends at the lowest
    layer that learns.
    """
    return optax.partition({LEARNING: inner, FROZEN: optax.set_to_zero()}, labels(params, learning))


def log_partition(params: Any, learning: frozenset[str]) -> None:
    """Logs how many weights learn, how many are frozen, and the layers that learn."""
    total = parameter_overview.count_parameters(params)
    head = parameter_overview.count_parameters(params["head"])
    layers = {name: tensors for name, tensors in params["backbone"].items() if name in learning}
    backbone = parameter_overview.count_parameters(layers)
    named = ", ".join(layers) if len(layers) <= 8 else f"{len(layers)} layers"
    log.info(
        "learning: %s weights of the backbone (%s) and %s of the head; frozen: %s",
        f"{backbone:,}", named or "no layer", f"{head:,}", f"{total - backbone - head:,}",
    )  # fmt: skip
