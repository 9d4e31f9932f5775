"""What a run leaves to read: figures, text tables, JSON and CSV files, each written whole or not at all."""

import csv
import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fer_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, float]]

METRIC_COLUMNS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
HISTORY_COLUMNS = ("epoch", *METRIC_COLUMNS, "seconds")
LANE_COLUMNS = ("learning_rate", "seed")  # before these, where a run trains several lanes at once
DPI = 120
# Blue and vermilion of Okabe & Ito's palette (Color Universal Design, 2008) for colour-blind readers; they
# differ in lightness too, for a print in grey.
BLUE, VERMILION, LIGHT_GREY = "#0072B2", "#D55E00", "#C8C8C8"
# Of many classes a figure shows no more than a page holds, and is drawn in seconds.
MOST_FACES, MOST_BARS, MOST_NUMBERED = 40, 10, 30


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes plain types, numpy scalars and arrays as indented JSON; NaN and infinities become null."""

    def plain(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {str(key): plain(item) for key, item in x.items()}
        if isinstance(x, np.ndarray | np.generic):
            return plain(x.tolist())
        if isinstance(x, list | tuple):
            return [plain(item) for item in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")  # as JSON escapes


def write_history_csv(path: str | os.PathLike[str], history: History) -> None:
    """Writes a row an epoch; floats so that reading them gives the same bits.

    Args:
      path: the file.
      history: rows with the keys of `HISTORY_COLUMNS`, perhaps with those of `LANE_COLUMNS` too.

    Raises:
      KeyError: a row lacks one of them.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = (*(name for name in LANE_COLUMNS if history and name in history[0]), *HISTORY_COLUMNS)
        writer.writerow(columns)
        for row in history:
            # float() first: the repr of a numpy number is no number.
            writer.writerow([int(row[n]) if n in ("seed", "epoch") else repr(float(row[n])) for n in columns])


def epoch_table(history: History) -> str:
    """An aligned table of a run's epochs, a line each."""
    heads = ("epoch", "train loss", "train acc.", "val. loss", "val. acc.", "seconds")
    lines = ["  ".join(head.rjust(10 if i else 5) for i, head in enumerate(heads))]
    for row in history:
        cells = [f"{row[name]:10.4f}" for name in METRIC_COLUMNS]
        lines.append("  ".join([f"{int(row['epoch']):5d}", *cells, f"{row['seconds']:10.1f}"]))
    return "\n".join(lines)


def class_table(classification: Mapping[str, Any]) -> str:
    """An aligned table of `metrics.classification`: a line a class, then accuracy and macro F1."""
    width = max(map(len, [*classification["per_class"], "macro F1"]))
    lines = [f"{'class':{width}}  precision  recall      F1  images"]
    for name, row in classification["per_class"].items():
        numbers = f"{row['precision']:9.3f}  {row['recall']:6.3f}  {row['f1']:6.3f}  {row['support']:6d}"
        lines.append(f"{name:{width}}  {numbers}")
    total = sum(row["support"] for row in classification["per_class"].values())
    lines.append(f"{'accuracy':{width}}  {classification['accuracy']:25.3f}  {total:6d}")
    lines.append(f"{'macro F1':{width}}  {classification['macro_f1']:25.3f}  {total:6d}")
    if classification["degenerate"]:
        lines.append("degenerate: one class is predicted for every image")
    return "\n".join(lines)


def lanes_table(
    names: Sequence[str], lanes: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[int]]
) -> str:
    """An aligned table of runs done at once, a line each, with mean ± standard deviation of every group.

    Args:
      names: of the lanes.
      lanes: each with `final`, a row of its history, and `test`, a `metrics.classification`.
      groups: indices of the lanes that are alike but for the seed.
    """
    width = max(map(len, [*names, "mean ± standard deviation"]))
    heads = ("train acc.", "val. acc.", "test acc.", "macro F1")
    lines = [" " * width + "".join(head.rjust(17) for head in heads)]
    for group in groups:
        numbers = np.array(
            [
                [final["train_accuracy"], final["val_accuracy"], test["accuracy"], test["macro_f1"]]
                for final, test in ((lanes[i]["final"], lanes[i]["test"]) for i in group)
            ]
        )
        lines += [
            f"{names[i]:{width}}" + "".join(f"{value:17.4f}" for value in row)
            for i, row in zip(group, numbers, strict=True)
        ]
        if len(group) > 1:
            pairs = zip(numbers.mean(0), numbers.std(0, ddof=1), strict=True)
            cells = "".join(f"{mean:.4f} ± {std:.4f}".rjust(17) for mean, std in pairs)
            lines.append(f"{'mean ± standard deviation':{width}}{cells}")
    return "\n".join(lines)


def choose_faces(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Picks the faces to show: of each true class the most confident right and the most confident wrong one,
    as many as `MOST_FACES`.

    Confidence is the probability of the predicted class; the first of equals wins.

    Args:
      labels: true classes, integers [N].
      probabilities: predicted probabilities, [N, C].

    Returns:
      Indices, int64 [K], class by class, right before wrong; what does not occur is left out.
    """
    right = probabilities.argmax(1) == labels
    confidence = probabilities.max(1)
    chosen = []
    for label in range(probabilities.shape[1]):
        for group in ((labels == label) & right, (labels == label) & ~right):
            if group.any():
                chosen.append(int(np.where(group, confidence, -1.0).argmax()))
    return np.array(chosen[:MOST_FACES], np.int64)


def plot_history(histories: Sequence[History], title: str, path: str | os.PathLike[str]) -> None:
    """Draws accuracy and loss over epochs, train and validation, epoch 0 included, as PNG.

    Args:
      histories: of runs that differ in the seed alone, each a row an epoch (`HISTORY_COLUMNS`). Of several
        the mean is drawn, with a band of one standard deviation to either side.
      title: names data set, backbone and initialisation.
      path: the file.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(10, 4.2, title)
    epochs = [row["epoch"] for row in histories[0]]
    for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for name, split, style in (
            ("train", "train", {"color": BLUE, "marker": "o", "linestyle": "-"}),
            ("validation", "val", {"color": VERMILION, "marker": "s", "linestyle": "--"}),
        ):
            values = np.array([[row[f"{split}_{metric}"] for row in history] for history in histories])
            mean = values.mean(0)
            axes.plot(epochs, mean, label=name, markersize=4, **style)
            if len(histories) > 1:
                std = values.std(0, ddof=1)
                axes.fill_between(
                    epochs, mean - std, mean + std, color=style["color"], alpha=0.25, linewidth=0
                )
        axes.set(xlabel="epoch (0: before the first step)", ylabel=metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(color=LIGHT_GREY, linewidth=0.6)
        axes.legend(title=f"mean ± std of {len(histories)} seeds" if len(histories) > 1 else None)
    _save(figure, path)


def plot_confusion(
    matrix: Sequence[Sequence[float]] | NDArray[np.number],
    class_names: Sequence[str],
    title: str,
    path: str | os.PathLike[str],
) -> None:
    """Draws a confusion matrix as PNG, each row divided by its sum, with the number of images by the class.

    Above `MOST_NUMBERED` classes the cells have colours alone.

    Args:
      matrix: counts, or means of counts over runs, [C, C]; rows are true classes, columns predicted ones.
      class_names: the C names.
      title: names data set, backbone and initialisation.
      path: the file.
    """
    counts = np.asarray(matrix)
    support = counts.sum(1)
    shares = counts / np.maximum(support, 1)[:, None]
    names = [literal(textwrap.fill(name, 24)) for name in class_names]
    letters = max(min(len(name), 24) for name in class_names)  # 0.1 inch each
    numbered = len(counts) <= MOST_NUMBERED
    cells = min(max(3, len(counts)), MOST_NUMBERED)  # that there is room for
    figure = new_figure(0.8 + 0.85 * cells + 0.1 * letters, 0.7 + 0.68 * cells + 0.06 * letters, title)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85)
    ticks = range(len(class_names))
    rows = [f"{name} ({n:.0f})" for name, n in zip(names, support, strict=True)]
    axes.set_xticks(ticks, names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, rows)
    axes.set(xlabel="predicted", ylabel="true (images)")
    if not numbered:
        axes.tick_params(labelsize=max(4, 10 * MOST_NUMBERED / len(counts)))
    for (row, column), share in np.ndenumerate(shares) if numbered else ():
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=9)
    _save(figure, path)


def plot_faces(
    images: NDArray[np.uint8],
    labels: Sequence[int] | NDArray[np.integer],
    probabilities: NDArray[np.floating],
    class_names: Sequence[str],
    title: str,
    path: str | os.PathLike[str],
) -> None:
    """Draws faces with their predicted probabilities as bars, as PNG; the paper's figures 9-15.

    Args:
      images: uint8 [K, H, W], grey, or [K, H, W, 3], RGB.
      labels: true classes, integers [K].
      probabilities: [K, C].
      class_names: the C names.
      title: names data set, backbone and initialisation.
      path: the file.
    """
    names = [literal(name) for name in class_names]
    rows = max(1, math.ceil(len(images) / 2))
    figure = new_figure(10, 0.9 + 1.75 * rows, title)
    grid = figure.subplots(rows, 4, squeeze=False, width_ratios=[1, 1.25, 1, 1.25])
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (image, label, chances) in enumerate(zip(images, labels, probabilities, strict=True)):
        face, bars = grid[i // 2, 2 * (i % 2) : 2 * (i % 2) + 2]
        face.imshow(image, cmap="gray", vmin=0, vmax=255)
        verdict = "right" if chances.argmax() == label else "wrong"
        face.set_title(f"{names[label]}: {verdict}", fontsize=9)
        _plot_bars(bars, int(label), chances, names)
    _save(figure, path)


def _plot_bars(axes: "Axes", label: int, chances: NDArray[np.floating], class_names: Sequence[str]) -> None:
    """Bars of one face's probabilities, the `MOST_BARS` largest and the true class's: the predicted one dark,
    the true class's name bold with an arrow."""
    axes.set_axis_on()
    predicted = int(chances.argmax())
    shown = sorted({*np.argsort(-chances)[:MOST_BARS].tolist(), label})
    ticks = range(len(shown))
    axes.barh(ticks, chances[shown], color=[BLUE if i == predicted else LIGHT_GREY for i in shown])
    axes.set_yticks(ticks, [f"true → {class_names[i]}" if i == label else class_names[i] for i in shown])
    axes.get_yticklabels()[shown.index(label)].set_fontweight("bold")
    for tick, chance in enumerate(chances[shown]):
        axes.text(chance + 0.02, tick, f"{chance:.2f}", va="center", fontsize=7)
    axes.tick_params(labelsize=8, length=0)
    axes.set(xlim=(0, 1.18), xticks=[])
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def literal(text: str) -> str:
    """The text for Matplotlib, which would read a formula between two dollar signs."""
    return text.replace("$", r"\$")


def new_figure(width: float, height: float, title: str, fontsize: float = 12) -> "Figure":
    """An empty figure of `width` x `height` inches under a title.

    Made without pyplot, which would keep it and ask for a display.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(literal(textwrap.fill(title, int(9 * width))), fontsize=fontsize)  # 9 letters an inch
    return figure


def _save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight")  # whatever labels need
