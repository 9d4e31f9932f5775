"""What a cell will take on this machine: a rough forecast from operations and a measured matrix product."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.operations import head_inputs, operations
from benchmarks.study import cells
from benchmarks.study.product import flops_per_second
from benchmarks.work import IMAGES, TRAIN_IMAGES, VALIDATION_IMAGES, Work
from fer_jax import forward, models
from fer_jax.data import class_folders, containers, sources
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.initialisation import Init, abstract_head, build_classifier

# Of the FLOP/s of XLA's product of 2048 square. By it the random cells, the rows `cell` of ours, come out at
# 0.95 to 1.33 times what was measured in benchmarks/results/throughput/throughput.csv (Xeon, 180 GFLOP/s) and
# throughput_epyc/throughput.csv (EPYC, 97).
EFFICIENCY = 0.75
# The same of training steps with nothing frozen, from the rows `full_step` of these files (of VGG-Face, at
# batch 8, the EPYC's is in vggface_full_step.csv): on the Xeon OpenFace reached 0.48, ResNet-50 and VGG-Face
# 0.50, on the EPYC 0.65, 0.58 and 0.98.
UNFROZEN_EFFICIENCY = 0.48
DEPTHWISE_EFFICIENCY = 0.3  # MobileNet's: 0.32 and 0.31
START_SECONDS = 15.0
# To fit all of `classifiers.GRIDS`, for each training image and feature, on two cores of an AMD EPYC:
# MobileNet alpha 0.25 and 0.75 took about 120 and 490 s.
CLASSIFIER_SECONDS = 2.4e-5
BASE_GB = 1.0  # a process with its programs and all faces


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Seconds; most memory and most disk in 1e9 bytes. `feature_seconds` and `feature_gb` of them are for
    features that another cell of the same weights may have left in the cache."""

    seconds: float
    feature_seconds: float
    memory_gb: float
    disk_gb: float
    feature_gb: float


@functools.cache
def faces_and_classes(source: sources.Source | None) -> tuple[int, int]:
    """How many there are of each in a source; FER2013's numbers for None."""
    if source is None:
        return IMAGES, len(CLASS_NAMES)
    if source.form == "csv":
        return _csv_rows(source), len(CLASS_NAMES)
    listed = class_folders.class_images(source)
    return len(listed.paths), len(listed.class_names)


def _csv_rows(source: sources.Source) -> int:
    """The lines below the header that are not blank."""
    place = source.container
    folder, name = (place, source.member) if source.member else (place.parent, place.name)
    with containers.reading(place):
        return sum(
            sum(not line.isspace() for line in stream) - 1
            for _, _, stream in containers.members(folder, [name])
        )


def forecast(cell: cells.Cell, source: sources.Source | None = None, classifiers: bool = False) -> Forecast:
    """The forecast for a cell of which nothing is done yet.

    Args:
      source: of its faces; None for FER2013.
      classifiers: whether those that are no neural networks are fitted too.
    """
    setting = cell.setting
    faces, classes = faces_and_classes(source)
    share = min(setting.limit or faces, faces) / IMAGES
    work = _work(setting.backbone, setting.alpha, setting.image_size, cell.init, setting.variant, classes)
    rate = EFFICIENCY * flops_per_second()
    feature_seconds = share * IMAGES * work.upstream / rate
    train, evaluate = work.train, work.evaluate
    if cell.init == "scratch":
        mobilenet = setting.backbone == "mobilenet"
        train *= EFFICIENCY / (DEPTHWISE_EFFICIENCY if mobilenet else UNFROZEN_EFFICIENCY)
    epochs = setting.epochs * (TRAIN_IMAGES * train + VALIDATION_IMAGES * evaluate) + IMAGES * evaluate
    fitting = share * TRAIN_IMAGES * work.inputs * CLASSIFIER_SECONDS if classifiers else 0.0
    features = share * IMAGES * work.crossing / 1e9
    batch = 32 * work.activations * (4 if not work.crossing else 1)
    # Read as squares of at most this size, in colour; FER2013's are in BASE_GB.
    images = faces * 3 * setting.image_size**2 if setting.data else 0
    return Forecast(
        START_SECONDS + feature_seconds + share * epochs / rate + fitting,
        feature_seconds,
        BASE_GB + min(features, 4.0) + (images + 16 * work.learning + batch) / 1e9,
        # A checkpoint beside the one before, and the model.
        features + (24 * work.learning + 4 * work.parameters) / 1e9,
        features,
    )


def without_repeats(costs: Sequence[tuple[cells.Cell, Forecast]]) -> list[Forecast]:
    """The forecast of each cell, features that an earlier one leaves in the cache not counted again."""
    seen: set[tuple[Any, ...]] = set()
    found = []
    for cell, cost in costs:
        # Pretrained features do not depend on the seed, nor on the split or the variant, of which one has
        # mirrored views beside.
        seed = None if cell.init == "pretrained" else cell.seed
        setting = cell.setting
        network = (setting.backbone, setting.alpha, setting.image_size, setting.limit, cell.init, seed)
        mirrored = (False, True) if setting.variant == "flipped" else (False,)
        views = {(*network, view) for view in mirrored} if cost.feature_gb else set()
        if views:
            known = len(views & seen) / len(views)
            cost = dataclasses.replace(
                cost,
                seconds=cost.seconds - known * cost.feature_seconds,
                disk_gb=cost.disk_gb - known * cost.feature_gb,
            )
        seen |= views
        found.append(cost)
    return found


class _Work(NamedTuple):
    """Of an image FLOP of extraction, training and evaluation, bytes of features and of activations; inputs
    of the head; numbers of weights that learn and of all."""

    upstream: float
    train: float
    evaluate: float
    crossing: int
    activations: int
    inputs: int
    learning: int
    parameters: int


@functools.cache
def _work(backbone: str, alpha: float, image_size: int, init: str, variant: str, classes: int) -> _Work:
    config = cells.configuration(
        cells.Cell(cells.Setting(backbone, alpha, image_size, variant=variant), init, 0), ferplus="unread"
    )
    model, learning = build_classifier(config, Init(init, ""), classes)
    layers = models.trace_layers(model.backbone)
    inputs = head_inputs(backbone, layers)
    head_weights, found = inputs * classes, None
    if init != "scratch":
        abstract = models.abstract_variables(model.backbone)
        head = abstract_head(model)
        params, stats = (
            {"backbone": abstract.get(part, {}), "head": head.get(part, {})}
            for part in ("params", "batch_stats")
        )
        found, _ = forward.find_cut(config, model, params, stats, learning)
    views = 2 if forward.mirrored_alone(config.augment) else 1

    def flop(phase: str) -> float:
        names = tuple(sorted(learning))
        return operations(Work(phase, learning=names), layers, head_weights, bool(found))

    return _Work(
        upstream=views * flop("extraction") if found else 0.0,
        train=flop("tail_step" if found else "uncut_step"),
        evaluate=flop("evaluate"),
        crossing=views * found.bytes_per_image if found else 0,
        activations=4 * sum(math.prod(layer.output_shape) for layer in layers),
        inputs=inputs,
        learning=sum(layer.learnable for layer in layers if layer.name in learning) + head_weights,
        parameters=sum(layer.parameters for layer in layers) + head_weights,
    )
