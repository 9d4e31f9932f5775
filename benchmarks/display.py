"""The benchmark's rows as a table and as a plot."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.row_files import Row
from fer_jax.files import replacing, writing_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette (Color Universal Design, 2008); hatches tell the bars apart in grey.
STYLES = {
    "ours": ("#0072B2", ""),
    "keras-tf": ("#E69F00", "//"),
    "keras-jax": ("#56B4E9", ".."),
    "torch": ("#F0E442", "xx"),
}


def table(rows: Iterable[Row]) -> str:
    """The rows as text; columns in images/s, ms, GFLOP and MB."""
    layout = "{:<14} {:>4} {:<10} {:<8} {:>5} {:<9} {:>9} {:>19} {:>8} {:>7} {:>6} {:>8} {:>6}"
    names = "backbone size phase dtype batch who images/s (min-max) ms-p50 GFLOP MFU MB ours/"
    lines = [layout.format(*names.split())]
    for row in rows:
        spread = f"({_short(row['images_per_s_min'])}-{_short(row['images_per_s_max'])})"
        cells = [
            _network(row),
            row["image_size"],
            row["phase"],
            row["dtype"],
            row["batch_size"],
            row["contender"],
        ]
        numbers = ("latency_ms_p50", "gflop_per_image", "mfu", "peak_memory_mb", "ours_over_this")
        cells += [_short(row["images_per_s"]), spread, *(_short(row[name]) for name in numbers)]
        line = layout.format(*cells)
        if row["seconds"]:
            line += f"  {float(row['seconds']) / 60:.2f} min"
        if not row["rounds"] or "halved" in row["note"]:
            line += f"  {row['note']}"
        lines.append(line)
    return "\n".join(lines)


def _network(row: Row) -> str:
    """The backbone, with its width where that is not 1."""
    return row["backbone"] + (f" {row['alpha']}" if row["alpha"] not in ("", "1") else "")


def _short(value: str) -> str:
    return f"{float(value):.4g}" if value else ""


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Images/s of every backbone (down) and phase (across), a bar a contender, whiskers from min to max.

    Returns:
      whether there was anything to plot.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["rounds"] and row["phase"] != "matmul"]
    if not rows:
        return False
    models = list(dict.fromkeys((_network(row), row["image_size"]) for row in rows))
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    bars = list(dict.fromkeys((row["contender"], row["dtype"]) for row in rows))
    size = (max(5.0, 1.2 + 2.6 * len(phases)), 1.4 + 2.2 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(models), len(phases), squeeze=False)
    for (network, image_size), line in zip(models, grid, strict=True):
        for phase, axes in zip(phases, line, strict=True):
            axes.set_title(f"{network} {image_size}, {phase}", fontsize=9)
            key = (network, image_size, phase)
            here = [row for row in rows if (_network(row), row["image_size"], row["phase"]) == key]
            _plot_bars(axes, here, bars)
        next(axes for axes in line if axes.get_visible()).set_ylabel("images/s", fontsize=8)
    handles = {
        label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(4, 2 * len(phases)),
        fontsize=8,
    )
    days = sorted({day[:10] for row in rows for day in row["date"].split()})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    figure.suptitle(f"{rows[0]['device']}, {rows[0]['threads']} threads, {when}", fontsize=9)
    with writing_to(path), replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


def _plot_bars(axes: "Axes", rows: Sequence[Row], bars: Sequence[tuple[str, str]]) -> None:
    """The bars of one backbone and phase, by batch size; where there is no row, no axes.

    Args:
      bars: contender and dtype of all bars of the figure, in order.
    """
    axes.set_visible(bool(rows))
    batches = sorted({int(row["batch_asked"]) for row in rows})
    width = 0.8 / len(bars)
    for row in rows:
        place = bars.index((row["contender"], row["dtype"]))
        x = batches.index(int(row["batch_asked"])) + (place - (len(bars) - 1) / 2) * width
        rate, low, high = (float(row[f"images_per_s{end}"]) for end in ("", "_min", "_max"))
        colour, hatch = STYLES.get(row["contender"], ("#999999", "++"))
        bar = axes.bar(
            x,
            rate,
            width,
            yerr=[[rate - low], [high - rate]],
            capsize=2,
            edgecolor="black",
            color=colour,
            hatch=hatch,
            alpha=1.0 if row["dtype"] == "float32" else 0.5,
            label=f"{row['contender']}, {row['dtype']}",
        )
        axes.bar_label(bar, [f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"], fontsize=6, padding=1)
    axes.margins(y=0.15)
    axes.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axes.tick_params(labelsize=8)
    axes.set_xlim(-0.5, max(1, len(batches)) - 0.5)
