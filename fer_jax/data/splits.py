"""Train, validation and test as lists of row indices: the splits by name, and what deduplication leaves.

Every list is in the order in which the split produced it, and its sha256 is that of its indices as
little-endian int64, one after the other: `hashlib.sha256(indices.astype("<i8").tobytes())`.
"""

import hashlib
import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fer_jax import cache
from fer_jax.data import duplicates
from fer_jax.data.dataset import USAGE_NAMES, FaceDataset
from fer_jax.errors import InputError

NAMES = ("paper", "paper_val_first", "official", "fractions")
FRACTIONS = (0.7, 0.1, 0.2)  # train, validation and test, where no others are asked for
PARTS = ("train", "validation", "test")

# The paper's counts, of 35,887 faces: 25,121 train, 3,589 validation, 7,177 test.
_PUBLISHED, _VALIDATION, _TEST = 35887, 3589, 7177

_LARGEST_SEED = 2**32 - 1  # that numpy's RandomState, scikit-learn's random_state, takes

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Three lists of row indices, each int64 [n], that share no row.

    Attributes:
      train, validation, test: the lists.
      name: how the split was made.
      notes: what a reader of any result from this split has to be told.
    """

    train: Indices
    validation: Indices
    test: Indices
    name: str
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Indices]:
        """The lists by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def sha256(self) -> dict[str, str]:
        """The sha256 (hex) of each list: of its indices in order, as little-endian int64."""
        parts = self.parts.items()
        return {part: hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() for part, rows in parts}


def possible(dataset: FaceDataset) -> tuple[str, ...]:
    """The splits by name that there are of a data set."""
    usages = set() if dataset.usage is None else set(dataset.usage.tolist())
    needed = {0, 1, 2} if dataset.kind in ("csv", "icml") else {0, 2}  # else some of train/ validate
    return tuple(name for name in NAMES if name != "official" or usages >= needed)


def check(name: str, seed: int, fractions: Sequence[float]) -> None:
    """Raises InputError for what `make_split` takes of no data set."""
    if name not in NAMES:
        raise InputError(f"split {name!r} is unknown; expected one of {', '.join(NAMES)}")
    if not 0 <= seed <= _LARGEST_SEED:
        raise InputError(f"split seed {seed}: expected 0 to {_LARGEST_SEED}")
    numbers = len(fractions) == 3 and all(isinstance(part, int | float) and part > 0 for part in fractions)
    if name == "fractions" and not (numbers and math.isclose(sum(fractions), 1, abs_tol=1e-6)):
        raise InputError(f"data.fractions: expected three above 0 with the sum 1, got {tuple(fractions)}")
    if name != "fractions" and tuple(fractions) != FRACTIONS:
        raise InputError(f"data.fractions: goes with data.split fractions, got data.split {name}")


def make_split(
    dataset: FaceDataset, name: str, seed: int = 42, fractions: Sequence[float] = FRACTIONS
) -> Split:
    """Splits a data set in one of the ways in which the paper can be read (readings of its counts) or others.

    paper: scikit-learn's stratified `train_test_split` with an integer test_size of 7,177, then of 3,589
      for validation from the rest. Of another number of rows N, of round(N * 7177 / 35887) and
      round(N * 3589 / 35887).
    paper_val_first: the same function with test_size=0.1 for validation first, then 0.2222 of the rest for
      test; scikit-learn rounds both up.
    official: Training, PublicTest and PrivateTest are train, validation and test, in row order; so are the
      folders train/, validation/ and test/. Without validation/, as in FER2013's class folders,
      round(N * 3589 / 35887) rows of train/ are split off for it, stratified (the size of PublicTest).
    fractions: as paper, but of round(N * test) rows, then round(N * validation).

    Args:
      seed: `random_state` of every call, 0 to 2**32 - 1; official on a csv draws nothing.
      fractions: train, validation and test of the split of this name.

    Raises:
      InputError: unknown name or seed, fractions that are not three above 0 with the sum 1, no Usage, an
        empty part, a folder's class that train/ lacks, or too few rows of a class to stratify.
    """
    check(name, seed, fractions)
    if name in ("paper", "fractions"):
        validation_size, test_size = _share(dataset, _VALIDATION), _share(dataset, _TEST)
        if name == "fractions":
            validation_size, test_size = (round(len(dataset.labelled) * part) for part in fractions[1:])
        rest, test = _part(dataset, dataset.labelled, test_size, seed, "test")
        train, validation = _part(dataset, rest, validation_size, seed, "validation")
    elif name == "paper_val_first":
        rest, validation = _part(dataset, dataset.labelled, 0.1, seed, "validation")
        train, test = _part(dataset, rest, 0.2222, seed, "test")
    else:
        return _official(dataset, seed)
    return Split(train, validation, test, name)


def _official(dataset: FaceDataset, seed: int) -> Split:
    if dataset.usage is None:
        raise InputError(
            f"{dataset.source}: no Usage or train/ and test/, so no split 'official'; use paper or fractions"
        )
    train, validation, test = (
        dataset.labelled[dataset.usage[dataset.labelled] == usage] for usage in range(3)
    )
    if dataset.kind not in ("csv", "icml"):
        return _by_folder(dataset, train, validation, test, seed)
    for usage, rows in zip(USAGE_NAMES, (train, validation, test), strict=True):
        if not len(rows):
            raise InputError(f"{dataset.source}: split 'official': no row has the Usage {usage}")
    return Split(train, validation, test, "official")


def _by_folder(dataset: FaceDataset, train: Indices, validation: Indices, test: Indices, seed: int) -> Split:
    """The split of the folders; without validation/ some rows of train/ are split off for it."""
    for part, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise InputError(f"{dataset.source}: split 'official': no image in {part}/")
    for label in np.setdiff1d(dataset.labels, dataset.labels[train]):
        name = dataset.class_names[label]
        raise InputError(f"{dataset.source}: split 'official': no image of the class {name} in train/")
    if len(validation):
        return Split(train, validation, test, "official")
    size = _share(dataset, _VALIDATION)
    train, validation = _part(dataset, train, size, seed, "validation")
    whose = f"validation is {size} faces split off from train/ (stratified, seed {seed})"
    note = f"official: there is no validation/, so {whose}"
    if dataset.kind == "folders":
        only = "class folders know only train/ and test/"
        note = f"official: {only}, so {whose}; this is not the csv's PublicTest"
    return Split(train, validation, test, "official", (note,))


def _share(dataset: FaceDataset, published: int) -> int:
    return round(len(dataset.labelled) * published / _PUBLISHED)


def _part(
    dataset: FaceDataset, rows: Indices, size: int | float, seed: int, what: str
) -> tuple[Indices, Indices]:
    """Splits `size` rows off, stratified by label, and returns (the rest, those split off)."""
    labels = dataset.labels[rows]
    counts = np.bincount(labels, minlength=len(dataset.class_names))
    for label in np.flatnonzero(counts == 1):
        raise InputError(
            f"{dataset.source}: one {dataset.class_names[label]} face is left to split {what} off from; "
            "a stratified split needs two of every class"
        )
    split_off = size if isinstance(size, int) else int(np.ceil(size * len(rows)))
    classes = np.count_nonzero(counts)
    if min(split_off, len(rows) - split_off) < classes:
        raise InputError(
            f"{dataset.source}: {len(rows)} rows are too few to split {split_off} off for {what}; "
            f"either side needs at least {classes}, one of every class"
        )

    def compute() -> dict[str, Indices]:
        from sklearn.model_selection import train_test_split

        kept, taken = train_test_split(rows, test_size=size, stratify=labels, random_state=seed)
        return {"kept": kept, "taken": taken}

    # Kept, since the import of scikit-learn alone takes a second of every start.
    inputs = hashlib.sha256(rows.astype("<i8").tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    version = importlib.metadata.version("scikit-learn")
    key = f"{inputs} {size} {seed} scikit-learn {version}"
    parts = cache.remembered("splits", key, ("kept", "taken"), compute)
    return parts["kept"], parts["taken"]


def deduplicate(dataset: FaceDataset, split: Split) -> tuple[Split, dict[str, dict[str, int]]]:
    """Drops from a split what would make its numbers dishonest.

    In this order, each row counted under the first reason that fits: blank images (all pixels equal); images
    that carry more than one label anywhere in the data; from train what occurs in validation or test, from
    validation what occurs in test; within each list all but the copy with the lowest row index.

    Returns:
      the split with the lists shortened, their order kept; and the rows dropped, by part, then by reason
      ("blank", "conflicting", "leaked", "copy").

    Raises:
      InputError: a part is left without any row.
    """
    kept: dict[str, Indices] = {}
    counts: dict[str, dict[str, int]] = {}
    for part, reasons in _reasons_to_drop(dataset, split).items():
        dropped = np.zeros(len(split.parts[part]), bool)
        counts[part] = {}
        for reason, applies in reasons.items():
            counts[part][reason] = int((applies & ~dropped).sum())
            dropped |= applies
        kept[part] = split.parts[part][~dropped]
        if not len(kept[part]):
            raise InputError(f"{dataset.source}: deduplication leaves no row for {part}")
    name = f"{split.name}, deduplicated"
    return Split(kept["train"], kept["validation"], kept["test"], name, split.notes), counts


def kept_of_test(dataset: FaceDataset, split: Split) -> NDArray[np.bool_]:
    """Which rows of test `deduplicate` would keep; bool [test images]."""
    return ~np.any(list(_reasons_to_drop(dataset, split)["test"].values()), axis=0)


def _reasons_to_drop(dataset: FaceDataset, split: Split) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """By part and reason of `deduplicate`: to which of the part's rows the reason applies."""
    ids = duplicates.image_ids(dataset.images)
    blank = duplicates.blank_rows(dataset.images)
    conflicting = duplicates.conflicting_rows(ids, dataset.labels)
    reasons = {}
    for part, rows in split.parts.items():
        later = [split.parts[name] for name in PARTS[PARTS.index(part) + 1 :]]
        leaked = np.isin(ids[rows], ids[np.concatenate(later)]) if later else np.zeros(len(rows), bool)
        in_row_order = np.argsort(rows, kind="stable")
        copy = np.ones(len(rows), bool)
        copy[in_row_order[np.unique(ids[rows][in_row_order], return_index=True)[1]]] = False
        reasons[part] = {
            "blank": blank[rows], "conflicting": conflicting[rows], "leaked": leaked, "copy": copy
        }  # fmt: skip
    return reasons


def format_dropped(counts: dict[str, dict[str, int]]) -> str:
    """The counts of `deduplicate` as an aligned table, a line a part."""
    reasons = list(counts["train"])
    lines = [" " * 12 + "".join(f"{reason:>13}" for reason in [*reasons, "in all"])]
    for part, by_reason in counts.items():
        values = [by_reason[reason] for reason in reasons]
        lines.append(f"{part:<12}" + "".join(f"{value:>13,}" for value in [*values, sum(values)]))
    return "\n".join(lines)
