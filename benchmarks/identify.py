"""The paper's identification procedure: which backbone to take, from the study's measurements.

    python -m benchmarks.identify runs/study

Prints quality, speed, size and need of data of every setting, which of them are on the front of quality
against speed, what follows for speed first, for quality first and for a limit on parameters, and how far that
agrees with the paper: speed matters and data is plentiful: OpenFace; quality matters and full training is
not affordable: VGG-Face.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import arguments as command_line
from benchmarks.study import cells, results
from benchmarks.study.results import Group
from fer_jax.errors import InputError, exit_on_input_error

PAPER = {"speed first": "openface", "quality first": "vggface"}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""

    parser = command_line.Parser("python -m benchmarks.identify", description=__doc__)
    parser.add_argument("directory", metavar="DIR", help="of a study, with results/")
    parser.add_argument("--split", default="paper", help="of the settings compared (default: paper)")
    parser.add_argument("--data", default="", metavar="NAME", help="of your own, where --data was given")
    parser.add_argument("--variant", default="plain", choices=tuple(cells.VARIANTS), help="default: plain")
    parser.add_argument("--max_parameters", type=int, default=2_000_000, help="default: %(default)s")
    parser.add_argument(
        "--slack", type=float, default=0.02, help="accuracy given away for speed (default: 0.02)"
    )
    return parser.parse_args(argv)


def quality(group: Group) -> float:
    """Mean test accuracy."""
    return float(group.values("test", "accuracy").mean())


def speed(group: Group) -> float:
    """Mean images/s in inference."""
    return float(group.values("predict_images_per_s").mean())


def parameters(group: Group) -> int:
    """Weights of the backbone."""
    return int(group.runs[0]["model"]["backbone_parameters"])


def data_need(group: Group) -> str:
    """In words: how many weights have to be learned for each training image."""
    images = sum(group.runs[0]["class_counts"]["train"].values())
    ratio = group.runs[0]["model"]["backbone_parameters_that_learn"] / images
    return f"{ratio:,.1f}"


def front(groups: Sequence[Group]) -> list[Group]:
    """The settings that no other beats in both quality and speed."""
    return [
        g
        for g in groups
        if not any(
            quality(o) >= quality(g)
            and speed(o) >= speed(g)
            and (quality(o), speed(o)) != (quality(g), speed(g))
            for o in groups
        )
    ]


def recommend(groups: Sequence[Group], max_parameters: int, slack: float) -> dict[str, Group | None]:
    """The setting for each need; None where none qualifies.

    quality first: the highest accuracy. Speed first: the fastest on the front that recognises more than
    always answering the commonest class would. Few parameters: the highest accuracy within the limit. Best
    trade: the fastest within `slack` of the highest accuracy.
    """
    if not groups:
        return {}
    best = max(groups, key=quality)
    useful = [g for g in front(groups) if quality(g) > _commonest(g)]
    small = [g for g in groups if parameters(g) <= max_parameters]
    close = [g for g in groups if quality(g) >= quality(best) - slack]
    return {
        "quality first": best,
        "speed first": max(useful, key=speed, default=None),
        f"at most {max_parameters:,} parameters": max(small, key=quality, default=None),
        f"fastest within {slack:g} of the best": max(close, key=speed),
    }


def _commonest(group: Group) -> float:
    counts = group.runs[0]["class_counts"]["test"].values()
    return max(counts) / sum(counts)


def agreement(need: str, chosen: Group | None, groups: Sequence[Group]) -> str:
    """How the choice agrees with the paper's for this need; empty where it names none, or has other data."""
    if need not in PAPER or not all(g.is_fer2013 for g in groups):
        return ""
    wanted = PAPER[need]
    ran = {g.setting.backbone for g in groups if g.init == "pretrained"}
    lacking = [name for name in cells.BACKBONES if name not in ran]
    if lacking:
        return f"the paper says {wanted}; cannot be compared: no pretrained run of {', '.join(lacking)}"
    agrees = chosen is not None and chosen.setting.backbone == wanted
    return f"the paper says {wanted}: {'agrees' if agrees else 'disagrees'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and the recommendations."""
    with exit_on_input_error():
        arguments = parse(argv)
        folder = Path(arguments.directory) / "results"
        if not folder.is_dir():
            raise InputError(f"{folder}: no such directory, expected that of a study")
        groups = [
            g
            for g in results.load(folder)
            if (g.setting.split, g.setting.variant) == (arguments.split, arguments.variant)
            and g.setting.data == arguments.data
            and not g.degenerate
            and not g.drawn
            and not g.setting.limit
            and g.setting.epochs == cells.EPOCHS
        ]
        if not groups:
            raise InputError(
                f"{folder}: no sound run on all faces with split {arguments.split}, {arguments.variant}"
                + (f", data {arguments.data}" if arguments.data else "")
            )
        on_front = front(groups)
        width = max(len(g.words) for g in groups)
        print(f"{'setting':{width}}   n  test acc.  images/s  parameters  weights to learn an image  front")
        for group in sorted(groups, key=quality, reverse=True):
            mark = "yes" if group in on_front else ""
            print(
                f"{group.words:{width}} {len(group.runs):3d} {quality(group):10.4f} {speed(group):9.1f} "
                f"{parameters(group):11,} {data_need(group):>26}  {mark}"
            )
        print("\nfront: no other setting is better in both accuracy and images/s\n")
        for need, chosen in recommend(groups, arguments.max_parameters, arguments.slack).items():
            said = agreement(need, chosen, groups)
            print(f"{need}: {chosen.words if chosen else 'none'}{f' ({said})' if said else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
