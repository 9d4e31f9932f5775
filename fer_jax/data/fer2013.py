"""FER2013 from whatever form it has on disk, or class folders of one's own; as a command, what is in it.

Usage: python -m fer_jax.data.fer2013 [PATH] [--split=paper] [--side=48] [--debug]
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fer_jax import cache, process
from fer_jax.arguments import Parser
from fer_jax.data import class_folders, duplicates, prepared, sources, splits
from fer_jax.data.dataset import SIDE, FaceDataset, Rows
from fer_jax.data.sources import Source
from fer_jax.data.splits import Split
from fer_jax.errors import InputError, exit_on_input_error

_FOLDERS_NOTE = (
    "class folders carry neither the row order nor the Usage of fer2013.csv: rows are in the order of the "
    "sorted paths, so no split of them is the csv's split, and the hashes of their index lists differ"
)


SMALLEST_SIDE, LARGEST_SIDE = 8, 1024  # of one's own images, pixels


def locate(config_path: str) -> str | None:
    """The path under which faces are to be looked for.

    Args:
      config_path: a path, or "" for $FER2013 where that is set, else ./data.

    Returns:
      the path; None if `config_path` is empty, $FER2013 unset and nothing found under ./data, where class
      folders alone, without train/, do not count: they may be anything.

    Raises:
      InputError: a path that was given, or $FER2013, holds no faces.
    """
    given = config_path or os.environ.get("FER2013")
    if given:
        _find(given)
        return given
    return "data" if os.path.isdir("data") and sources.find(Path("data"), own=False) else None


def check_side(side: int) -> None:
    """Raises InputError for a side that images of one's own cannot have."""
    if side and not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise InputError(f"data.side: expected 0, or {SMALLEST_SIDE} to {LARGEST_SIDE}, got {side}")


def load(
    path: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None = None,
    side: int = 0,
    image_size: int = SIDE,
) -> FaceDataset:
    """Reads FER2013 as a csv or as class folders, class folders of one's own, or an archive of either.

    A directory or archive is searched at any depth, in the order of `sources.PRECEDENCE`;
    `class_folders` says which folders are FER2013's. The first time, the source is read and a prepared copy
    written under the cache directory, keyed by the source's sha256 and, for one's own, the side of the
    images; from then on that copy is read. A line on stderr says which.

    Args:
      path: a .csv, .zip, .tar.gz or .tgz file, or a directory.
      cache_dir: default `fer_jax.cache.cache_dir()`.
      side: to which images of one's own are brought, in pixels; 0: 48 where none is larger, else
        `image_size`.

    Raises:
      InputError: nothing is found, or something in it is not as it has to be; the line names file and row.
        Or a side is asked for that FER2013's faces do not have.
    """
    source, sides = _find(path), (side, side) if side else (SIDE, image_size)
    sha256 = prepared.source_sha256(source)
    directory = Path(cache_dir) if cache_dir else cache.cache_dir()
    copy = prepared.find(sha256, sides, directory)
    doing = f"reading the prepared copy in {copy}"
    if copy is None:
        doing = f"preparing it, once, in {prepared.home(directory)}"
    print(f"data: {source} (sha256 {sha256[:12]}...): {doing}", file=sys.stderr, flush=True)
    rows = prepared.read(copy or prepared.prepare(source, sha256, sides, directory))
    if rows.kind != "own" and side not in (0, SIDE):
        raise InputError(f"data.side: {source}: FER2013's faces have {SIDE} pixels, expected 0, got {side}")
    return FaceDataset(
        images=rows.images,
        labels=rows.labels.astype(np.int32),
        usage=None if source.form == "classes" else rows.usage,
        class_names=rows.class_names,
        kind=rows.kind,
        source=str(source),
        sha256=sha256,
        notes=_notes(rows),
    )


def _notes(rows: Rows) -> tuple[str, ...]:
    if rows.kind == "folders":
        return (_FOLDERS_NOTE,)
    if rows.kind == "own":
        side, colour = rows.images.shape[1], "RGB" if rows.images.ndim == 4 else "grey"
        but = ""
        if class_folders.named_as_fer2013(rows.class_names, rows.usage):
            but = f" (called as FER2013's, but not every image is grey and {SIDE}x{SIDE})"
        return (f"own data, not FER2013{but}: images as {colour} squares of {side} pixels",)
    return ()


def _find(path: str | os.PathLike[str]) -> Source:
    source = sources.find(Path(path))
    if source is None:
        raise InputError(f"{path}: no faces found; looked for {sources.PRECEDENCE}")
    return source


def describe(dataset: FaceDataset) -> str:
    """The source, its hash and notes, and what is known to be wrong with it, as lines of text."""
    found = duplicates.summary(dataset)
    lines = [
        f"source              {dataset.source} ({dataset.kind})",
        f"sha256              {dataset.sha256}",
        f"faces               {found.rows:,} of {dataset.side}x{dataset.side} pixels, "
        f"{'RGB' if dataset.channels == 3 else 'grey'}",
        f"duplicates          {found.copies:,} rows are copies of others ({found.unique_images:,} unique)",
        f"conflicting labels  {found.conflicting_images:,} images carry more than one label "
        f"({found.conflicting_rows:,} rows)",
        f"blank images        {found.blank_images:,} (all pixels equal; {found.blank_rows:,} rows)",
    ]
    return "\n".join(lines + [f"NOTE: {note}" for note in dataset.notes])


def describe_split(dataset: FaceDataset, split: Split) -> str:
    """The class table (the paper's Table 1), index hashes and leaks of a split, as lines of text."""
    lines = [f"split {split.name}", " " * 14 + "".join(f"{part:>12}" for part in (*splits.PARTS, "all"))]
    classes = len(dataset.class_names)
    counts = np.stack([np.bincount(dataset.labels[rows], minlength=classes) for rows in split.parts.values()])
    for name, by_part in zip((*dataset.class_names, "all"), (*counts.T, counts.sum(axis=1)), strict=True):
        lines.append(f"  {name:<12}" + "".join(f"{count:>12,}" for count in (*by_part, by_part.sum())))
    order = "sorted paths" if dataset.kind in ("folders", "own") else "rows of the csv"
    lines.append(f"  sha256 of the index lists (little-endian int64; indices into the {order})")
    lines += [f"    {part:<12}{digest}" for part, digest in split.sha256.items()]
    lines.append("  distinct images that leak")
    for (first, second), count in duplicates.leaks(duplicates.image_ids(dataset.images), split.parts).items():
        lines.append(f"    {first + ' and ' + second:<24}{count:>6,}")
    return "\n".join(lines + [f"  NOTE: {note}" for note in split.notes])


def main(argv: Sequence[str] | None = None) -> None:
    """The command: describes the data set, then each split asked for."""
    parser = Parser(
        "python -m fer_jax.data.fer2013",
        description="Shows what is in a copy of FER2013, or in class folders of your own, and how it splits.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        default="",
        help=f"{sources.PRECEDENCE}, or a directory with these at any depth; default $FER2013, then data/",
    )
    parser.add_argument("--split", action="append", choices=splits.NAMES, help="may be repeated; default all")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of your own images (%(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="random_state of the splits (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    with exit_on_input_error():
        args = parser.parse_args(argv)
    process.print_any_name()
    with exit_on_input_error(args.debug):
        path = locate(args.path)
        if path is None:
            raise InputError(f"no PATH, $FER2013 not set, and data/ holds none of {sources.PRECEDENCE}")
        check_side(args.side)
        dataset = load(path, side=args.side)
        print(describe(dataset))
        for name in args.split or splits.possible(dataset):
            print("\n" + describe_split(dataset, splits.make_split(dataset, name, args.seed)))


if __name__ == "__main__":
    main()
