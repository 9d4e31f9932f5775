"""How numbers, groups and cells that did not run are written, the same in every table, legend and command."""

import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.study.blocks import Block, Paragraph
from benchmarks.study.cells import BACKBONES, VARIANT_WORDS, VARIANTS, Cell, Setting
from benchmarks.study.results import Group, images_per_s

NAMES = {"openface": "OpenFace", "vggface": "VGG-Face", "resnet50": "ResNet-50", "mobilenet": "MobileNet"}
NONE = "–"
SPEED = "images/s: the fastest of the network's runs, of any revision, as other work beside can only slow one"
FIT = (
    "fit: epochs times the median epoch of the fastest run, without the frozen part's features where they "
    "are computed before"
)


def number(value: float, digits: int = 3) -> str:
    """Rounded, never -0; a dash for what is no number."""
    return f"{value:z,.{digits}f}" if math.isfinite(value) else NONE


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Mean ± sample standard deviation; the mean alone of one value."""
    mean = number(values.mean(), digits)
    return f"{mean} ± {number(values.std(ddof=1), digits)}" if len(values) > 1 else mean


def label(group: Group, n: bool = False) -> str:
    """What a group is called, and how many of its runs predict one class for everything.

    Args:
      n: whether the number of seeds is told too.
    """
    runs, degenerate = len(group.runs), degenerate_runs(group)
    notes = [f"n = {runs}"] if n else []
    if degenerate:
        notes.append("degenerate" if degenerate == runs else f"{degenerate} of {runs} degenerate")
    return group.words + (f" ({', '.join(notes)})" if notes else "")


def classifiers(group: Group) -> list[tuple[str, Mapping[str, float]]]:
    """The classifiers that are no neural networks and their scores, with the seed where several have them."""
    fitted = {seed: run["classifiers"] for seed, run in zip(group.seeds, group.runs, strict=True)
              if "classifiers" in run}  # fmt: skip
    return [
        (f"{name}, seed {seed}" if len(fitted) > 1 else name, found)
        for seed, by_name in fitted.items()
        for name, found in by_name.items()
    ]


def on_embeddings(group: Group) -> list[tuple[str, Mapping[str, float]]]:
    """The same, by what they are called beside the group."""
    return [(f"{group.words}: {name} on its embeddings", found) for name, found in classifiers(group)]


def degenerate_runs(group: Group) -> int:
    """How many runs predict one class for every test image."""
    return sum(bool(run["test"]["degenerate"]) for run in group.runs)


def machines(groups: Sequence[Group]) -> dict[str, str]:
    """What the machines are called in the tables, by `Group.machines`."""
    found = dict.fromkeys(machine for group in groups for machine in group.machines)
    return {machine: f"M{place}" for place, machine in enumerate(found, start=1)}


def told_machines(groups: Sequence[Group]) -> str:
    """What each of them is."""

    def told(machine: str) -> str:
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in json.loads(machine).items())

    return "; ".join(f"{name}: {told(machine)}" for machine, name in machines(groups).items())


def seconds_and_speed(group: Group, groups: Sequence[Group]) -> list[str]:
    """Seconds to fit and images/s, with the machine's name where `groups` were measured on several."""
    names = machines(groups)
    machine = f" ({names[group.machine]})" if len(names) > 1 else ""
    fit = number(group.timed.fit_seconds.min(), 0)
    return [fit + machine, rate(images_per_s(group, groups)) + machine]


def rate(images_per_s: float) -> str:
    """Images/s."""
    return number(images_per_s, 1 if images_per_s < 100 else 0)


def parameters(group: Group) -> list[str]:
    """The backbone's, and of them those that learn."""
    return [f"{group.parameters:,}", f"{group.learning_parameters:,}"]


def network(setting: Setting) -> str:
    """A backbone at a width and size."""
    return Setting(setting.backbone, setting.alpha, setting.image_size).words


def data_words(setting: Setting) -> str:
    """The faces and the split; settings of the same words have the same rows."""
    changed = VARIANT_WORDS[setting.variant] if setting.variant in ("deduplicated", "ferplus") else ""
    limit = f"limited to {setting.limit:,} faces" if setting.limit else ""
    return ", ".join(word for word in (setting.data, f"split {setting.split}", changed, limit) if word)


def has_weighted_loss(group: Group) -> bool:
    """Whether faces count by their class in the train loss, and so in it alone."""
    return VARIANTS[group.setting.variant].get("class_weight", "") == "balanced"


def papers_first(groups: Sequence[Group]) -> list[Group]:
    """By backbone, and in each what has the paper's split, epochs and faces first."""
    return sorted(groups, key=lambda g: (BACKBONES.index(g.setting.backbone), not g.setting.is_papers,
                                         not g.setting.has_papers_data))  # fmt: skip


def missing(
    absent: Mapping[Cell, str], keep: Callable[[Setting], bool], groups: Sequence[Group]
) -> dict[str, str]:
    """The settings to keep that have no result, and why; the seeds of one are one, but where others of it
    have run."""
    ran, found = {(group.setting, group.init): group.seeds for group in groups}, dict[str, str]()
    for cell, reason in absent.items():
        if keep(cell.setting):
            others = ran.get((cell.setting, cell.init), ())
            seed = f", seed {cell.seed}" if others and cell.seed not in others else ""
            found.setdefault(f"{cell.setting.words}, {cell.init}{seed}", reason)
    return found


def missing_rows(lacking: Mapping[str, str], columns: int) -> list[list[str]]:
    """A row each: the setting with the reason in short, and dashes."""
    return [
        [f"{words}: {reason.partition(':')[0]}", *[NONE] * (columns - 1)] for words, reason in lacking.items()
    ]


def missing_note(lacking: Mapping[str, str]) -> list[Block]:
    """What stands below the table: the reasons in full, with the command that would supply weights; nothing
    where none is missing."""
    reasons = "; ".join(f"{words}: {reason}" for words, reason in lacking.items())
    return [Paragraph(f"Without a result: {reasons}.")] if lacking else []
