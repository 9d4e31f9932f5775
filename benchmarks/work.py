"""What is measured: one piece of work, the same for every contender."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

CLASSES = 7
# The paper's cell: its split of FER2013, and its epochs.
TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES, EPOCHS = 25_121, 3_589, 7_177, 20
IMAGES = TRAIN_IMAGES + VALIDATION_IMAGES + TEST_IMAGES

PHASES = {
    "forward": "backbone without head, inference; the images are scaled and on the device",
    "tail_step": "training step, all but the last 4 layers frozen; ours starts from cached features",
    "uncut_step": "the same step, ours without cached features: the very work that the peers do",
    "full_step": "training step with nothing frozen",
    "evaluate": "classifier in inference; ours starts from cached features",
    "extraction": "ours alone: faces on the host to features on the disk, once an image",
    "predict": "48x48 crops on the host to probabilities; the peers with deepface's network for emotions",
    "detect": "ours alone: 640x480 photographs with a face to probabilities, detection included",
    "cell": f"{EPOCHS} epochs of tail steps and validation, one test; ours counts the extraction",
}
# What predicts, at batch 1 too, with its latency.
PREDICTING = ("predict", "detect")
CELL_PIECES = ("extraction", "tail_step", "evaluate")
# Phases that not every contender has.
CONTENDERS_OF = {
    "extraction": ("ours",),
    "detect": ("ours",),
    "whole_cell": ("ours",),
    "predict": ("ours", "keras-tf", "keras-jax"),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One piece of work.

    Attributes:
      phase: one of `PHASES` but "cell", or "matmul": a product of two square matrices, or "whole_cell": ours
        alone, the paper's cell from start to end.
      dtype: "float32" or "bfloat16": of all in inference and of a matrix product; weights that are
        trained and what Adam keeps stay float32.
      batch_size: images a call (1 for "matmul").
      image_size: pixels; for "matmul" the side of the matrices.
      learning: names of the backbone's layers that learn in a step.
    """

    phase: str
    dtype: str = "float32"
    batch_size: int = 1
    backbone: str = ""
    alpha: float = 1.0
    image_size: int = 0
    learning: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether it is a training step."""
        return self.phase.endswith("_step")


class Run(Protocol):
    """Does the work `batches` times and returns when the device has finished the last."""

    def __call__(self, batches: int) -> None: ...


class Contender(Protocol):
    """What a module of `benchmarks.worker.CONTENDERS` has."""

    LAYOUT: str

    def describe(self) -> dict[str, str]:
        """{"device": ..., "versions": ...} in words."""

    def variants(self, work: Work) -> dict[str, Run]:
        """Ways to do the work, by name; the fastest is the one that counts. Nothing is compiled yet."""

    def peak_memory(self) -> int | None:
        """Most bytes in use on the accelerator since the start; None on CPU."""


def repeated(call: Callable[[], Any], wait: Callable[[Any], object]) -> Run:
    """A run that calls `call` once a batch and has `wait` wait for the last result."""

    def run(batches: int) -> None:
        for _ in range(batches):
            result = call()
        wait(result)

    return run


def jax_peak_memory() -> int | None:
    """`Contender.peak_memory` of those on JAX."""
    import jax  # the arguments of a command are read without

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def cell_images(own_cut: bool) -> dict[str, int]:
    """How many images each phase handles in a cell.

    Args:
      own_cut: the frozen part is computed once an image, not in every step.
    """
    evaluated = EPOCHS * VALIDATION_IMAGES + TEST_IMAGES
    images = {"tail_step": EPOCHS * TRAIN_IMAGES, "evaluate": evaluated}
    if own_cut:
        images["extraction"] = IMAGES
    return images


def random_labels(work: Work, rng: np.random.Generator) -> np.ndarray:
    """int32 [batch_size]."""
    return rng.integers(0, CLASSES, work.batch_size, np.int32)


def random_crops(work: Work) -> np.ndarray:
    """uint8 [batch_size, 48, 48]."""
    return np.random.default_rng(1).integers(0, 256, (work.batch_size, 48, 48), np.uint8)


def he_normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """A random kernel [..., inputs, outputs], float32, behind which activations keep their scale.

    Under the usual initialisers MobileNet's shrink to 1e-20 in inference mode, and their squares to
    denormal numbers, which some libraries are slow at. A depthwise kernel [k, k, channels, 1] counts too.
    """
    fan_in = math.prod(shape[:2]) if len(shape) == 4 and shape[3] == 1 else math.prod(shape[:-1])
    return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan_in))
