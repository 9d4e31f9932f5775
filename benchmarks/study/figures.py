"""The study's figures, PNG each; colours of Okabe and Ito, with markers that tell them apart in grey."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.study.results import Group
from fer_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
# Color Universal Design, 2008: blue, vermilion, green, purple, orange, sky blue, black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 1)), "-")
GREY = "#C8C8C8"


def plot_histories(groups: Sequence[Group], title: str, path: Path) -> None:
    """Accuracy and loss over epochs, train left and validation right, a line a group, bands over seeds."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(10.5, 7.2 + 0.28 * len(groups), title)
    grid = figure.subplots(2, 2, sharex=True)
    for row, metric in enumerate(("accuracy", "loss")):
        for column, part in enumerate(("train", "val")):
            axes = grid[row, column]
            for i, group in enumerate(groups):
                values = group.history(f"{part}_{metric}")
                mean, epochs = values.mean(0), range(values.shape[1])
                style = {
                    "color": COLOURS[i % len(COLOURS)],
                    "marker": MARKERS[i % len(MARKERS)],
                    "linestyle": LINES[i % len(LINES)],
                }
                label = f"{group.words} (n = {len(group.runs)}{', degenerate' if group.degenerate else ''})"
                axes.plot(epochs, mean, label=label, markersize=4, markevery=2, linewidth=1.4, **style)
                if len(group.runs) > 1:
                    std = values.std(0, ddof=1)
                    axes.fill_between(
                        epochs, mean - std, mean + std, color=style["color"], alpha=0.2, linewidth=0
                    )
            axes.set_title(f"{'train' if part == 'train' else 'validation'} {metric}", fontsize=10)
            axes.grid(color=GREY, linewidth=0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            if row == 1:
                axes.set_xlabel("epoch (0: before the first step)")
        low = min(axes.get_ylim()[0] for axes in grid[row])
        high = max(axes.get_ylim()[1] for axes in grid[row])
        for axes in grid[row]:
            axes.set_ylim(low, high)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False)
    _save(figure, path)


def plot_recall(groups: Sequence[Group], title: str, path: Path) -> None:
    """Recall of each class on test, a marker a group, whiskers of one standard deviation over seeds."""
    names = groups[0].runs[0]["test"]["class_names"]
    figure = _figure(10.5, 4.0 + 0.28 * len(groups), title)
    axes = figure.subplots()
    for i, group in enumerate(groups):
        values = np.array([group.values("test", "per_class", name, "recall") for name in names])
        places = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * 0.8 / len(groups)
        std = values.std(1, ddof=1) if values.shape[1] > 1 else None
        axes.errorbar(
            places, values.mean(1), yerr=std, fmt=MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)],
            markersize=6, capsize=2, label=f"{group.words} (n = {len(group.runs)})",
        )  # fmt: skip
    for edge in range(1, len(names)):
        axes.axvline(edge - 0.5, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="recall on test", ylim=(-0.03, 1.03), xlim=(-0.5, len(names) - 0.5))
    axes.grid(axis="y", color=GREY, linewidth=0.5)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False)
    _save(figure, path)


def plot_confusions(groups: Sequence[Group], title: str, path: Path) -> None:
    """A confusion matrix a group, summed over seeds, rows divided by their sums."""
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure = _figure(5.25 * columns, 0.8 + 5.4 * rows, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for group, axes in zip(groups, grid.flat, strict=False):
        counts = np.sum([run["test"]["confusion"] for run in group.runs], axis=0)
        shares = counts / np.maximum(counts.sum(1), 1)[:, None]
        names = group.runs[0]["test"]["class_names"]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_title(textwrap.fill(f"{group.words} (n = {len(group.runs)})", 48), fontsize=9)
        axes.set(xlabel="predicted", ylabel="true")
        for (i, j), share in np.ndenumerate(shares):
            colour = "white" if share > 0.5 else "black"
            axes.text(j, i, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=7)
    _save(figure, path)


def _figure(width: float, height: float, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(textwrap.fill(title, int(9 * width)), fontsize=11)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
