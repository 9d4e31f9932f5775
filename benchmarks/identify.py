"""The paper's identification procedure: which backbone to take, from the study's measurements.

    python -m benchmarks.identify runs/study

Prints quality, speed, size and need of data of every setting, which of them are on the front of quality
against speed, what follows for speed first, for quality first and for a limit on parameters, and how far that
agrees with the paper: speed matters and data is plentiful: OpenFace; quality matters and full training is
not affordable: VGG-Face.
"""

import argparse
import math
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import arguments as command_line
from benchmarks.study import cells, comparisons, results, wording
from benchmarks.study.results import Group
from fer_jax.data import splits
from fer_jax.errors import InputError, exit_on_input_error

PAPER = {"speed first": "openface", "quality first": "vggface"}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked.

    Raises:
      InputError: an unknown or missing value, or a number out of range.
    """
    parser = command_line.Parser("python -m benchmarks.identify", description=__doc__)
    parser.add_argument("directory", metavar="DIR", help="of a study, with results/")
    parser.add_argument(
        "--split", default="paper", choices=splits.NAMES, help="of the settings compared (default: paper)"
    )
    parser.add_argument("--data", default="", metavar="NAME", help="of your own, where --data was given")
    parser.add_argument("--variant", default="plain", choices=tuple(cells.VARIANTS), help="default: plain")
    for name, default in (("limit", 0), ("epochs", cells.EPOCHS), ("learning_rate", cells.LEARNING_RATE)):
        said = f"of a study that was given one (default: {default or 'all faces'})"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=said)
    parser.add_argument("--max_parameters", type=int, default=2_000_000, help="default: %(default)s")
    parser.add_argument(
        "--slack", type=float, default=0.02, help="accuracy given away for speed (default: 0.02)"
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.slack < math.inf:
        raise InputError(f"--slack: expected at least 0, got {arguments.slack}")
    if arguments.max_parameters < 1:
        raise InputError(f"--max_parameters: expected at least 1, got {arguments.max_parameters}")
    return arguments


def quality(group: Group) -> float:
    """Mean validation accuracy after the last epoch; test decides nothing."""
    return float(_accuracies(group).mean())


def speed(group: Group, groups: Sequence[Group], study: Sequence[Group]) -> float:
    """Images/s of its network on the machine that most of `groups` were measured on; NaN where it did not run
    there.

    Args:
      study: all groups, whose runs tell how fast a network can be.
    """
    usual = Counter(g.machine for g in groups).most_common(1)
    return results.images_per_s(group, study, on=usual[0][0])


def with_speed(groups: Sequence[Group], study: Sequence[Group]) -> list[Group]:
    """The settings whose images/s can be compared."""
    return [group for group in groups if not math.isnan(speed(group, groups, study))]


def data_need(group: Group) -> str:
    """In words: how many weights have to be learned for each training image."""
    images = sum(group.runs[0]["class_counts"]["train"].values())
    return f"{group.learning_parameters / images:,.1f}"


def front(groups: Sequence[Group], study: Sequence[Group]) -> list[Group]:
    """The settings `with_speed` to none of which another is equal or better in quality and speed, and better
    in one."""
    here = with_speed(groups, study)
    points = [(quality(group), speed(group, groups, study)) for group in here]

    def is_beaten(mine: tuple[float, float]) -> bool:
        return any(p[0] >= mine[0] and p[1] >= mine[1] and p != mine for p in points)

    return [group for group, point in zip(here, points, strict=True) if not is_beaten(point)]


def recommend(
    groups: Sequence[Group], study: Sequence[Group], max_parameters: int, slack: float
) -> dict[str, Group | None]:
    """The setting for each need; None where none qualifies.

    quality first: the highest accuracy. Few parameters: the highest accuracy within the limit. Speed first:
    the fastest on the front that recognises more than always answering the commonest class would. And of
    those `with_speed` the fastest within `slack` of their highest accuracy, of equally fast ones the better.
    """
    if not groups:
        return {}
    best = max(groups, key=quality)
    small = [g for g in groups if g.parameters <= max_parameters]

    def fast(group: Group) -> tuple[float, float]:
        return speed(group, groups, study), quality(group)

    useful = [g for g in front(groups, study) if quality(g) > _commonest(g)]
    here = with_speed(groups, study)
    where = " on that machine" if len(here) < len(groups) else ""
    close = [g for g in here if quality(g) >= max(map(quality, here)) - slack]
    return {
        "quality first": best,
        f"at most {max_parameters:,} parameters": max(small, key=quality, default=None),
        "speed first": max(useful, key=fast, default=None),
        f"fastest within {slack:g} of the best{where}": max(close, key=fast, default=None),
    }


def _commonest(group: Group) -> float:
    counts = group.runs[0]["class_counts"]["validation"].values()
    return max(counts) / sum(counts)


def not_told_from(best: Group, groups: Sequence[Group]) -> str:
    """The groups, in words, whose accuracy may be that of the best: Welch's interval of the difference
    reaches 0, or there are too few seeds for one."""
    found = []
    for group in groups:
        if group is best:
            continue
        effect = comparisons.unpaired(best, group, _accuracies)
        if isinstance(effect, str):
            found.append(f"{wording.label(group)} (too few seeds to tell)")
        elif effect.interval()[0] <= 0:
            found.append(wording.label(group))
    return "; ".join(found)


def _accuracies(group: Group) -> np.ndarray:
    return group.values("final", "val_accuracy")


def agreement(need: str, groups: Sequence[Group], study: Sequence[Group]) -> str:
    """Whether of the paper's networks, pretrained, the paper names for this need the one that these runs do;
    empty where it names none, or has other data."""
    if need not in PAPER or not all(g.is_fer2013 for g in groups):
        return ""
    wanted = PAPER[need]
    compared = with_speed(groups, study) if need == "speed first" else groups
    where = " on that machine" if len(compared) < len(groups) else ""
    networks = [wording.network(cells.papers(backbone)) for backbone in cells.BACKBONES]
    papers = [
        group
        for group in compared
        if group.init == "pretrained"
        and not group.partly_pretrained
        and wording.network(group.setting) in networks
    ]
    ran = {wording.network(group.setting) for group in papers}
    if lacking := [name for name in networks if name not in ran]:
        names = ", ".join(lacking)
        return f"the paper says {wanted}; cannot be compared: no complete pretrained run of {names}{where}"
    chosen = recommend(papers, study, max_parameters=0, slack=0.0)[need]
    here = chosen.setting.backbone if chosen else "none"
    return f"the paper says {wanted}; of its networks it is {here}: {'dis' * (here != wanted)}agrees"


class Compared(NamedTuple):
    """The settings compared, by their sound runs; those asked for, all runs; all of the study; and in words
    those without a result, with the reason."""

    groups: list[Group]
    asked_for: list[Group]
    study: list[Group]
    lacking: dict[str, str]


def read(folder: Path, arguments: argparse.Namespace) -> Compared:
    """What a study has measured of what is asked for.

    Raises:
      InputError: no such directory, or nothing there to compare.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory, expected that of a study")

    names = ("split", "variant", "data", "limit", "epochs", "learning_rate")

    def is_asked_for(setting: cells.Setting) -> bool:
        return all(getattr(setting, name) == getattr(arguments, name) for name in names)

    study = results.load(folder)
    here = [g for g in study if is_asked_for(g.setting) and not g.drawn]
    groups = [sound for g in here if (sound := g.sound)]
    if not groups:
        asked = ", ".join(f"{name} {value}" for name in names if (value := getattr(arguments, name)))
        there = [wording.label(g) for g in study if not g.drawn] or ["runs on drawn faces alone"]
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        raise InputError(f"{folder}: no sound run with {asked}; it has {'; '.join(there[:3])}{more}")
    lacking = results.lacking(study, results.absent(folder), Path("weights"))
    return Compared(groups, here, study, wording.missing(lacking, is_asked_for, study))


def on_the_same_faces(groups: Sequence[Group]) -> list[Group]:
    """The most of them that can be compared, of the same data file and rows."""
    return max(([g for g in groups if not comparisons.unlike(one, g)] for one in groups), key=len)


def table(groups: Sequence[Group], study: Sequence[Group], lacking: Mapping[str, str]) -> list[str]:
    """Lines: the best first, then what has no result."""
    on_front = front(groups, study)
    names = [wording.label(g) for g in groups] + [row[0] for row in wording.missing_rows(lacking, 1)]
    width = max(map(len, names))
    lines = [
        f"{'setting':{width}}   n  validation acc.       test acc.  images/s   parameters  "
        "weights to learn an image  front"
    ]
    for group in sorted(groups, key=quality, reverse=True):
        accuracies = [group.values("final", "val_accuracy"), group.values("test", "accuracy")]
        numbers = "  ".join(f"{wording.spread(values):>15}" for values in accuracies)
        lines.append(
            f"{wording.label(group):{width}} {len(group.runs):3d}  {numbers} "
            f"{wording.rate(speed(group, groups, study)):>9} {group.parameters:12,} "
            f"{data_need(group):>26}  "
            f"{'yes' if group in on_front else ''}".rstrip()
        )
    lines += names[len(groups) :]
    commands = [f"{words}: {reason}" for words, reason in lacking.items()]
    return lines + (["", *commands] if commands else [])


def _tell(what: str, groups: Iterable[Group]) -> None:
    if names := "; ".join(map(wording.label, groups)):
        print(f"{what}: {names}")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and the recommendations."""
    with exit_on_input_error():
        arguments = parse(argv)
        found = read(Path(arguments.directory) / "results", arguments)
        groups, study = on_the_same_faces(found.groups), found.study
        print("\n".join(table(groups, study, found.lacking)))
        print("\nchosen by validation accuracy; ± is the standard deviation over n seeds")
        _tell(
            "left out as degenerate, one class for every face",
            filter(wording.degenerate_runs, found.asked_for),
        )
        _tell("left out, on other data or rows than the rest", (g for g in found.groups if g not in groups))
        print("front: no other setting is better in one of accuracy and images/s and as good in the other")
        print(wording.SPEED)
        here = with_speed(groups, study)
        _tell(
            "no images/s on the machine that most ran on, so compared in quality alone",
            (g for g in groups if g not in here),
        )
        print()
        for need, chosen in recommend(groups, study, arguments.max_parameters, arguments.slack).items():
            said = agreement(need, groups, study)
            print(f"{need}: {wording.label(chosen) if chosen else 'none'}{f' ({said})' if said else ''}")
            if chosen and need == "quality first" and (names := not_told_from(chosen, groups)):
                print(f"  which these seeds do not tell from {names}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a pipe that is closed, as by head, ends the command
    sys.exit(main())
