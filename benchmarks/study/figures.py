"""The study's figures, PNG each; colours of Okabe and Ito, with markers that tell them apart in grey."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.study.cells import INITS, Setting
from benchmarks.study.results import Group
from benchmarks.study.wording import label
from fer_jax.files import replacing
from fer_jax.report import BLUE, LIGHT_GREY, VERMILION, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
# Color Universal Design, 2008; after those of `report` green, purple, orange, sky blue, black.
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))


def _style(group: Group, settings: Sequence[Setting], before: int) -> dict[str, Any]:
    """Colour and line by initialisation, marker by the setting's place in `settings`; in front.

    Args:
      before: how many lines of the same initialisation came before, which have other shades.
    """
    place, init = settings.index(group.setting), INITS.index(group.init)
    return {
        "color": _shade(COLOURS[init], before),
        "linestyle": LINES[init],
        "marker": MARKERS[place % len(MARKERS)],
        "zorder": 3,
    }


def _shade(colour: str, place: int) -> tuple[float, ...]:
    """The colour itself, darker, lighter, and so on."""
    from matplotlib.colors import to_rgb

    towards, share = ((0.0, 0.0), (0.0, 0.55), (1.0, 0.5))[place % 3]
    return tuple((1 - share) * part + share * towards for part in to_rgb(colour))


def _other_style(place: int) -> dict[str, Any]:
    """In colours and lines that no initialisation has."""
    index = len(INITS) + place % (len(COLOURS) - len(INITS))
    marker = MARKERS[(len(INITS) + place) % len(MARKERS)]
    return {"color": COLOURS[index], "linestyle": LINES[index], "marker": marker}


def loss_limit(groups: Sequence[Group]) -> float:
    """The end of the loss axis, which all figures of these groups can share: the highest loss from epoch 1 on
    where that before the first step is more than half as high again, as it can be many times that."""
    losses = [g.history(f"{part}_loss") for g in groups for part in ("train", "val")]
    later, ever = (
        max((float(np.nanmax(x[:, first:], initial=0)) for x in losses), default=0.0) for first in (1, 0)
    )
    return 1.05 * (ever if ever <= 1.5 * later else later) or 1.0


def plot_histories(
    plain: Sequence[Group],
    others: Sequence[Group],
    settings: Sequence[Setting],
    title: str,
    path: Path,
    highest_loss: float,
) -> None:
    """Accuracy and loss over epochs, train left and validation right, a line a group, bands over seeds.

    Args:
      plain: whose colour is that of their initialisation in every figure.
      others: in colours that no initialisation has.
      settings: those of all plain groups of the figures that belong together.
    """
    from matplotlib.ticker import MaxNLocator

    inits = [group.init for group in plain]
    lines = [(group, _style(group, settings, inits[:i].count(group.init))) for i, group in enumerate(plain)]
    lines += [(group, _other_style(i)) for i, group in enumerate(others)]
    figure = new_figure(10.5, 7.2 + 0.28 * len(lines), title, fontsize=11)
    grid = figure.subplots(2, 2, sharex=True)
    for row, (metric, limit) in enumerate((("accuracy", 1.02), ("loss", highest_loss))):
        for column, part in enumerate(("train", "val")):
            axes = grid[row, column]
            for group, style in lines:
                _plot_history(axes, group, f"{part}_{metric}", style)
            axes.set_title(f"{'train' if part == 'train' else 'validation'} {metric}", fontsize=10)
            axes.grid(color=LIGHT_GREY, linewidth=0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            axes.set_ylim(0, limit)
            if row == 1:
                axes.set_xlabel("epoch (0: before the first step)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    # Long enough that dashes tell initialisations of one setting, and so of one marker, apart in grey.
    figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False, handlelength=6)
    _save(figure, path)


def _plot_history(axes: "Axes", group: Group, column: str, style: dict[str, Any]) -> None:
    values = group.history(column)
    mean, epochs = values.mean(0), range(values.shape[1])
    axes.plot(
        epochs, mean, label=literal(label(group, n=True)), markersize=4, markevery=2, linewidth=1.4, **style
    )
    if len(group.runs) > 1:
        std = values.std(0, ddof=1)
        axes.fill_between(epochs, mean - std, mean + std, color=style["color"], alpha=0.2, linewidth=0)


def plot_recall(groups: Sequence[Group], title: str, path: Path) -> None:
    """Recall of each class on test, a marker a group, whiskers from its lowest to its highest seed."""
    names = groups[0].runs[0]["test"]["class_names"]
    figure = new_figure(10.5, 4.0 + 0.28 * len(groups), title, fontsize=11)
    axes = figure.subplots()
    for i, group in enumerate(groups):
        values = np.array([group.values("test", "per_class", name, "recall") for name in names])
        places = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * 0.8 / len(groups)
        mean = values.mean(1)
        axes.errorbar(
            places,
            mean,
            yerr=np.maximum(0, [mean - values.min(1), values.max(1) - mean]) if values.shape[1] > 1 else None,
            color=COLOURS[INITS.index(group.init)],
            linestyle="none",
            marker=MARKERS[i],
            markersize=6,
            capsize=2,
            label=literal(label(group, n=True)),
        )
    for edge in range(1, len(names)):
        axes.axvline(edge - 0.5, color=LIGHT_GREY, linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="recall on test", ylim=(-0.03, 1.03), xlim=(-0.5, len(names) - 0.5))
    axes.grid(axis="y", color=LIGHT_GREY, linewidth=0.5)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False)
    _save(figure, path)


def plot_confusions(groups: Sequence[Group], title: str, path: Path) -> None:
    """A confusion matrix a group, summed over seeds, rows divided by their sums."""
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure = new_figure(5.25 * columns, 0.8 + 5.4 * rows, title, fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for group, axes in zip(groups, grid.flat, strict=False):
        counts = np.sum([run["test"]["confusion"] for run in group.runs], axis=0)
        shares = counts / np.maximum(counts.sum(1), 1)[:, None]
        names = group.runs[0]["test"]["class_names"]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_title(literal(textwrap.fill(label(group, n=True), 48)), fontsize=9)
        axes.set(xlabel="predicted", ylabel="true")
        for (i, j), share in np.ndenumerate(shares):
            colour = text_colour(image.cmap(share)[:3])
            axes.text(j, i, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=7)
    _save(figure, path)


def contrast(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two sRGB colours in [0, 1], by WCAG 2: from 1 to 21."""

    def luminance(colour: Sequence[float]) -> float:
        x = np.asarray(colour)
        linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def text_colour(background: Sequence[float]) -> str:
    """Black or white, whichever stands out more."""
    return "white" if contrast((1, 1, 1), background) > contrast((0, 0, 0), background) else "black"


def _save(figure: "Figure", path: Path) -> None:
    """In 256 colours, which takes a third of the bytes: the page has all figures inside."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with replacing(path) as temporary:
        image.save(temporary, format="png", optimize=True)
