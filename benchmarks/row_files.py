"""Rows of the benchmark: a csv that is whole at every moment, and what follows from the rows."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import shape
from benchmarks.work import cell_images
from fer_jax.errors import InputError
from fer_jax.files import replacing, writing_to

Row = dict[str, Any]

COLUMNS = (
    "date", "revision", "contender", "backbone", "alpha", "image_size", "phase", "dtype", "batch_size",
    "batch_asked", "images_per_s", "images_per_s_min", "images_per_s_max", "rounds", "ours_over_this",
    "latency_ms_p50", "latency_ms_p99", "seconds", "compile_s", "peak_memory_mb", "gflop_per_image",
    "gflop_per_s", "mfu", "device", "threads", "layout", "variant", "versions", "note",
)  # fmt: skip
# A result is measured once a csv: these say which one it is.
KEY = ("contender", "backbone", "alpha", "image_size", "phase", "dtype", "batch_asked")
NUMBERS = (
    "alpha", "image_size", "images_per_s", "images_per_s_min", "images_per_s_max", "ours_over_this",
    "latency_ms_p50", "latency_ms_p99", "seconds", "compile_s", "peak_memory_mb", "gflop_per_image",
    "gflop_per_s", "mfu",
)  # fmt: skip


_SIZES = "at batches of"  # in the note of a cell some of whose pieces memory made smaller


class Csv:
    """The rows of a file, kept there: each change replaces the whole file at once."""

    def __init__(self, path: Path) -> None:
        """Reads `path` where it exists.

        Raises:
          InputError: it has other columns than `COLUMNS`, or is damaged.
        """
        self.path = path
        self.rows = _read(path) if path.exists() else []

    def find(self, **key: Any) -> Row | None:
        """The row with these values in the columns `KEY`."""
        return next((row for row in self.rows if _identity(row) == _identity(key)), None)

    def replace(self, rows: Iterable[Row]) -> None:
        """Adds rows, in place of those of the same key, and what follows from them; writes.

        Raises:
          InputError: the file cannot be written; the rows are here all the same.
        """
        new = [{name: _text(row.get(name, "")) for name in COLUMNS} for row in rows]
        identities = {_identity(row) for row in new}
        self.rows = [row for row in self.rows if _identity(row) not in identities] + new
        add_ratios(self.rows)
        add_mfu(self.rows)
        with (
            writing_to(self.path),
            replacing(self.path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def _read(path: Path) -> list[Row]:
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"--output: {path}, line {line}: not UTF-8 text; expected a csv in UTF-8") from error
    reader, rows = csv.DictReader(io.StringIO(text, newline="")), list[Row]()
    try:
        if reader.fieldnames != list(COLUMNS):
            raise InputError(f"--output: {path} has other columns, expected {','.join(COLUMNS[:4])},...")
        for row in reader:
            _check(row)
            rows.append(row)
    except (csv.Error, ValueError) as error:
        raise InputError(f"--output: {path}, line {reader.reader.line_num}: {error}") from error
    return rows


def _check(row: Row) -> None:
    """Does nothing where a row is one that `Csv` may have written.

    Raises:
      ValueError: the first fault.
    """
    if None in row or None in row.values():
        raise ValueError(f"expected {len(COLUMNS)} fields, as many as columns")
    shape.check(row, _MEASURED if row["rounds"] else _ROW)
    if row["rounds"]:
        rate, low, high = (float(row[name]) for name in _RATES)
        if not low <= rate <= high:
            raise ValueError(f"images_per_s: expected {low:g} to {high:g}, its min and max, got {rate:g}")


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def _is_rate(text: str) -> bool:
    return text == "nan" or (_is_number(text) and float(text) > 0)


_RATES = ("images_per_s", "images_per_s_min", "images_per_s_max")
_ROW = {
    **dict.fromkeys(NUMBERS, shape.Leaf("a number or nothing", lambda x: not x or _is_number(x))),
    **dict.fromkeys(("batch_size", "batch_asked"), shape.Leaf("a whole number", str.isdecimal)),
    "rounds": shape.Leaf("numbers above 0 or nan", lambda x: all(map(_is_rate, x.split()))),
}
_MEASURED = {**_ROW, **dict.fromkeys(_RATES, shape.Leaf("a number", _is_number)), "date": shape.WORDS}


def _identity(row: Row) -> tuple[str, ...]:
    return tuple(_text(row[name]) for name in KEY)


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def has_failed(row: Row) -> bool:
    """Whether its note says that something failed, in one round perhaps."""
    return row["note"].startswith("failed")


def rates(row: Row) -> list[float]:
    """Images/s of each round, in order; nan for one that failed."""
    return [float(rate) for rate in row["rounds"].split()]


def summary(values: Sequence[float]) -> Row:
    """The columns that follow from the images/s of each round, nan for one that failed, but not for all."""
    known = _known(values)
    return {
        "images_per_s": statistics.median(known),
        "images_per_s_min": min(known),
        "images_per_s_max": max(known),
        "rounds": " ".join(f"{value:.5g}" for value in values),
    }


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def add_ratios(rows: Iterable[Row]) -> None:
    """Fills `ours_over_this`: the median over rounds of our images/s by the contender's in that round.

    It stays as it was where ours have been measured again since, without this contender, and empty where
    memory made one of them work at a smaller batch.
    """
    measured = [row for row in rows if row["rounds"]]
    own_rows = {_identity(row)[1:]: row for row in measured if row["contender"] == "ours"}
    for row in measured:
        own_row = own_rows.get(_identity(row)[1:])
        if own_row and row["contender"] != "ours" and _together(own_row, row):
            ratios = _known(a / b for a, b in zip(rates(own_row), rates(row), strict=True))
            row["ours_over_this"] = _text(statistics.median(ratios)) if ratios else ""


def _together(own: Row, other: Row) -> bool:
    """Whether both were measured in the same rounds, at the same batch size, a cell throughout."""
    same = all(own[name] == other[name] for name in ("date", "batch_size"))
    same &= len(rates(own)) == len(rates(other))
    return same and not any(_SIZES in row["note"] for row in (own, other))


def add_mfu(rows: Iterable[Row]) -> None:
    """Fills `mfu`: FLOP/s by those of the fastest matrix product of any contender, in the same dtype."""
    measured = [row for row in rows if row["gflop_per_s"]]
    ceilings: dict[str, float] = {}
    for row in measured:
        if row["phase"] == "matmul":
            ceilings[row["dtype"]] = max(ceilings.get(row["dtype"], 0.0), float(row["gflop_per_s"]))
    for row in measured:
        if ceiling := ceilings.get(row["dtype"]):
            row["mfu"] = _text(float(row["gflop_per_s"]) / ceiling)


def cell(pieces: dict[str, Row]) -> Row | None:
    """The paper's whole cell, extrapolated round by round from the rows of its phases.

    Its date and revision are those of all of them. None where none of the rounds has them all.

    Args:
      pieces: by phase, of one contender; with "extraction" for one that computes frozen features once.
    """
    images = cell_images(own_cut="extraction" in pieces)
    rounds = zip(*(rates(pieces[phase]) for phase in images), strict=False)
    seconds = [sum(n / rate for n, rate in zip(images.values(), rate, strict=True)) for rate in rounds]
    if not _known(seconds):
        return None
    origin = {
        name: " ".join(dict.fromkeys(row[name] for row in pieces.values())) for name in ("date", "revision")
    }
    notes = ["extrapolated from images/s of " + ", ".join(images)]
    notes += ["measured apart"] if " " in origin["date"] else []
    sizes = [pieces[phase]["batch_size"] for phase in images]
    notes += [f"{_SIZES} {', '.join(sizes)}"] if len(set(sizes)) > 1 else []
    # In images/s of training, so that ratios and spread mean what they mean in other rows.
    row = {**pieces["tail_step"], **origin, **summary([images["tail_step"] / s for s in seconds])}
    empty = ("peak_memory_mb", "gflop_per_image", "gflop_per_s", "mfu", "ours_over_this")
    return row | dict.fromkeys((*empty, "latency_ms_p50", "latency_ms_p99"), "") | {
        "phase": "cell",
        "seconds": statistics.median(_known(seconds)),
        "compile_s": sum(float(pieces[phase]["compile_s"] or 0) for phase in images),
        "note": ", ".join(notes),
    }  # fmt: skip
