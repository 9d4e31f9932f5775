"""FER2013 from whatever form it has on disk; as a command, what is in it and how it splits.

Usage: python -m fer_jax.data.fer2013 [PATH] [--split=paper] [--debug]
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fer_jax import cache
from fer_jax.data import duplicates, prepared, sources, splits
from fer_jax.data.dataset import CLASS_NAMES, FaceDataset
from fer_jax.data.sources import Source
from fer_jax.data.splits import Split
from fer_jax.errors import InputError, exit_on_input_error

_FOLDERS_NOTE = (
    "class folders carry neither the row order nor the Usage of fer2013.csv: rows are in the order of the "
    "sorted paths, so no split of them is the csv's split, and the hashes of their index lists differ"
)


def locate(config_path: str) -> str | None:
    """The path under which FER2013 is to be looked for.

    Args:
      config_path: a path, or "" for $FER2013 where that is set, else ./data.

    Returns:
      the path; None if `config_path` is empty, $FER2013 unset and nothing found under ./data.

    Raises:
      InputError: a path that was given, or $FER2013, holds no FER2013.
    """
    given = config_path or os.environ.get("FER2013")
    if given:
        _find(given)
        return given
    return "data" if os.path.isdir("data") and sources.find(Path("data")) else None


def load(path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> FaceDataset:
    """Reads FER2013 as a csv, as class folders, or as an archive of either.

    A directory or archive is searched at any depth; the first of these that is there counts: fer2013.csv,
    icml_face_data.csv, class folders train/ and test/, and, in a directory, an archive that holds one of
    them. The first time, the source is read and a prepared copy written under the cache directory, keyed by
    the source's sha256; from then on that copy is read. A line on stderr says which.

    Args:
      path: a .csv, .zip, .tar.gz or .tgz file, or a directory.
      cache_dir: default `fer_jax.cache.cache_dir()`.

    Raises:
      InputError: nothing is found, or something in it is not as it has to be; the line names file and row.
    """
    source = _find(path)
    sha256 = prepared.source_sha256(source)
    copy = prepared.directory(sha256, Path(cache_dir) if cache_dir else cache.cache_dir())
    done = copy.exists()
    doing = "reading the prepared copy" if done else "preparing it, once,"
    print(f"data: {source} (sha256 {sha256[:12]}...): {doing} in {copy}", file=sys.stderr, flush=True)
    if not done:
        prepared.prepare(source, copy)
    rows = prepared.read(copy)
    return FaceDataset(
        images=rows.images,
        labels=rows.labels.astype(np.int32),
        usage=rows.usage,
        class_names=CLASS_NAMES,
        kind=rows.kind,
        source=str(source),
        sha256=sha256,
        notes=(_FOLDERS_NOTE,) if rows.kind == "folders" else (),
    )


def _find(path: str | os.PathLike[str]) -> Source:
    source = sources.find(Path(path))
    if source is None:
        raise InputError(f"{path}: no FER2013 found; looked for {sources.PRECEDENCE}")
    return source


def describe(dataset: FaceDataset) -> str:
    """The source, its hash and notes, and what is known to be wrong with it, as lines of text."""
    found = duplicates.summary(dataset)
    lines = [
        f"source              {dataset.source} ({dataset.kind})",
        f"sha256              {dataset.sha256}",
        f"faces               {found.rows:,}",
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
    order = "sorted paths" if dataset.kind == "folders" else "rows of the csv"
    lines.append(f"  sha256 of the index lists (little-endian int64; indices into the {order})")
    lines += [f"    {part:<12}{digest}" for part, digest in split.sha256.items()]
    lines.append("  distinct images that leak")
    for (first, second), count in duplicates.leaks(duplicates.image_ids(dataset.images), split.parts).items():
        lines.append(f"    {first + ' and ' + second:<24}{count:>6,}")
    return "\n".join(lines + [f"  NOTE: {note}" for note in split.notes])


def main(argv: Sequence[str] | None = None) -> None:
    """The command: describes the data set, then each split asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m fer_jax.data.fer2013",
        description="Shows what is in a copy of FER2013, and how it splits.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        default="",
        help=f"{sources.PRECEDENCE}, or a directory with these at any depth; default $FER2013, then data/",
    )
    parser.add_argument("--split", action="append", choices=splits.NAMES, help="may be repeated; default all")
    parser.add_argument("--seed", type=int, default=42, help="random_state of the splits (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    with exit_on_input_error(args.debug):
        path = locate(args.path)
        if path is None:
            raise InputError(f"no PATH, $FER2013 not set, and data/ holds none of {sources.PRECEDENCE}")
        dataset = load(path)
        print(describe(dataset))
        for name in args.split or splits.NAMES:
            print("\n" + describe_split(dataset, splits.make_split(dataset, name, args.seed)))


if __name__ == "__main__":
    main()
