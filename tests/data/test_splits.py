"""The splits by name, their hashes on the real labels, and what deduplication drops."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fer_jax.data import duplicates, splits
from fer_jax.errors import InputError

# Of FER2013 in the row order of fer2013.csv; computed once, with scikit-learn's train_test_split.
GOLDEN = {
    "paper": {
        "train": (25121, "e97aa616c2d8d6084576de9344431a31e4cb1dfdf0ad241a805112a42d34aa08"),
        "validation": (3589, "c80e2512e45d3bb3bb1f4b4354cdc24fb806d945630b567797ee590ee8da2095"),
        "test": (7177, "ddc7e4009b113554af768d38bd2276f318bcf39327d9eef48289040af36e420f"),
    },
    "paper_val_first": {
        "train": (25121, "9437102086b05df40091153f2af8943261f1b3a14820fc7ec38c20ccd4c9624b"),
        "validation": (3589, "d5219df4e791680eeb168054db3d3344856d55298ae429b5ee27c109d006d8c0"),
        "test": (7177, "9968f9949fabbf02cb5d30354ba5236d078faecbec10f7b9c3189752461803e2"),
    },
    "official": {
        "train": (28709, "b38d962d0d041a0c9e18b591feaae067dcc44dd8393cef5dfe7178d5f0606013"),
        "validation": (3589, "8db449b1525174f19f4d5c67be77f2d3a55f22cf1673e70b4de98b87cdfe9203"),
        "test": (3589, "fa5a5db20f119084b96926799cdddb4fe209381938d0066a4489b09e04284e56"),
    },
}
GOLDEN["fractions"] = GOLDEN["paper"]  # 0.7, 0.1 and 0.2 of 35,887, rounded, are the paper's counts


def as_folders(dataset):
    """The rows as class folders give them: train/ and test/ only, in another order."""
    half = np.where(dataset.usage == 0, 0, 2).astype(np.uint8)
    order = np.lexsort((dataset.labels, half == 0))
    return replace(
        dataset,
        images=dataset.images[order],
        labels=dataset.labels[order],
        usage=half[order],
        kind="folders",
    )


@pytest.mark.parametrize("name", splits.NAMES)
def test_the_splits_of_the_real_data_are_the_published_lists(name, real):
    split = splits.make_split(real, name)
    assert {part: (len(rows), split.sha256[part]) for part, rows in split.parts.items()} == GOLDEN[name]


@pytest.mark.parametrize("name", splits.NAMES)
def test_a_split_of_the_real_data_covers_every_row_once(name, real):
    split = splits.make_split(real, name)
    rows = np.concatenate(list(split.parts.values()))
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(35887))


@pytest.mark.parametrize("name", ["paper", "paper_val_first"])
def test_the_papers_splits_keep_the_class_proportions(name, real):
    split = splits.make_split(real, name)
    overall = np.bincount(real.labels) / len(real)
    for rows in split.parts.values():
        np.testing.assert_allclose(np.bincount(real.labels[rows]) / len(rows), overall, atol=2e-4)


def test_paper_is_the_two_calls_that_it_says_it_is(small):
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(210), test_size=42, stratify=small.labels, random_state=42)
    train, validation = train_test_split(rest, test_size=21, stratify=small.labels[rest], random_state=42)
    split = splits.make_split(small, "paper")
    for rows, expected in zip(split.parts.values(), (train, validation, test), strict=True):
        np.testing.assert_array_equal(rows, expected)


def test_the_hash_is_that_of_the_list_as_little_endian_int64(small):
    split = splits.make_split(small, "official")
    content = b"".join(int(row).to_bytes(8, "little") for row in split.validation)
    assert split.sha256["validation"] == hashlib.sha256(content).hexdigest()


def test_another_seed_gives_another_split_and_the_same_seed_the_same(small):
    first, again, other = (splits.make_split(small, "paper", seed) for seed in (42, 42, 43))
    assert first.sha256 == again.sha256
    assert first.sha256["test"] != other.sha256["test"]


def test_official_on_class_folders_carves_validation_from_train_and_says_so(real):
    folders = as_folders(real)
    split = splits.make_split(folders, "official")
    assert [len(rows) for rows in split.parts.values()] == [25120, 3589, 7178]
    assert (folders.usage[split.train] == 0).all()
    assert (folders.usage[split.validation] == 0).all()
    assert (folders.usage[split.test] == 2).all()
    assert "split off from train/" in split.notes[0]
    assert "seed 42" in split.notes[0]
    assert not set(split.sha256.values()) & {digest for _, digest in GOLDEN["official"].values()}


def test_paper_on_class_folders_has_other_hashes_than_on_the_csv(real):
    split = splits.make_split(as_folders(real), "paper")
    assert [len(rows) for rows in split.parts.values()] == [25121, 3589, 7177]
    assert not set(split.sha256.values()) & {digest for _, digest in GOLDEN["paper"].values()}


@pytest.mark.parametrize("name", ["paper", "paper_val_first"])
def test_a_class_with_one_face_is_named(name, small):
    labels = np.where(small.labels == 1, 0, small.labels)
    labels[0] = 1
    with pytest.raises(InputError, match=r"small: one disgust face is left to split .* off from"):
        splits.make_split(replace(small, labels=labels), name)


def test_fractions_are_of_all_rows_and_keep_the_class_proportions(small):
    split = splits.make_split(small, "fractions", fractions=(0.5, 0.2, 0.3))
    assert [len(rows) for rows in split.parts.values()] == [105, 42, 63]
    for rows, count in zip(split.parts.values(), (15, 6, 9), strict=True):
        assert np.bincount(small.labels[rows]).tolist() == [count] * 7
    np.testing.assert_array_equal(np.sort(np.concatenate(list(split.parts.values()))), np.arange(210))


@pytest.mark.parametrize(
    "fractions",
    [(0.7, 0.2, 0.2), (0.8, 0.2), (0.8, 0.0, 0.2), (1.2, -0.4, 0.2), ("a", "b", "c"), (float("nan"),) * 3],
)
def test_fractions_that_are_no_three_shares_of_one_are_refused(fractions, small):
    with pytest.raises(InputError, match=r"^data\.fractions: expected three above 0 with the sum 1, got \("):
        splits.make_split(small, "fractions", fractions=fractions)


def test_too_few_rows_to_stratify_are_refused(small):
    few = replace(small, images=small.images[:40], labels=np.repeat(np.arange(7), 6)[:40], usage=None)
    with pytest.raises(InputError, match=r"small: .* rows are too few to split .* off for validation"):
        splits.make_split(few, "paper")


def test_official_without_usage_or_with_an_empty_part_is_refused(small):
    with pytest.raises(InputError, match="small: no Usage or train/ and test/, so no split 'official'"):
        splits.make_split(replace(small, usage=None), "official")
    with pytest.raises(InputError, match="no row has the Usage PublicTest"):
        splits.make_split(replace(small, usage=np.where(small.usage == 1, 0, small.usage)), "official")


def test_official_is_offered_where_its_parts_are_there(small):
    def offered(dataset, *usages):
        kept = np.isin(small.usage, usages)
        return "official" in splits.possible(replace(dataset, usage=np.where(kept, small.usage, usages[0])))

    folders = replace(small, kind="folders")
    assert offered(small, 0, 1, 2)
    assert not offered(small, 0, 2)
    assert offered(folders, 0, 2)
    assert not offered(folders, 0, 1)  # train/ and validation/ alone
    assert "official" not in splits.possible(replace(small, usage=None))


def test_an_unknown_split_is_refused_with_the_known_ones(small):
    with pytest.raises(
        InputError, match="'papers' is unknown; expected one of paper, paper_val_first, official"
    ):
        splits.make_split(small, "papers")


@pytest.mark.parametrize("name", splits.NAMES)
def test_seeds_are_those_of_scikit_learn(name, small):
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=f"split seed {seed}: expected 0 to 4294967295"):
            splits.make_split(small, name, seed)
    for seed in (0, 2**32 - 1):
        splits.make_split(small, name, seed)


def test_deduplication_drops_each_row_for_the_first_reason_that_fits(small):
    images, labels = small.images[:20].copy(), np.zeros(20, np.int32)
    images[3] = images[12] = 5  # blank, in train and validation
    images[4] = images[1]  # two labels
    labels[4] = 1
    images[5] = images[16]  # train holds a test image
    images[11] = images[17]  # so does validation
    images[6] = images[13]  # train holds a validation image
    images[7] = images[2]  # a copy within train, listed before row 2
    images[19] = images[18]  # a copy within test
    dataset = replace(small, images=images, labels=labels)
    split = splits.Split(np.arange(10)[::-1], np.arange(10, 15), np.arange(15, 20), "paper", ("a note",))
    kept, counts = splits.deduplicate(dataset, split)
    assert kept.train.tolist() == [9, 8, 2, 0]
    assert kept.validation.tolist() == [10, 13, 14]
    assert kept.test.tolist() == [15, 16, 17, 18]
    assert split.test[splits.kept_of_test(dataset, split)].tolist() == [15, 16, 17, 18]
    assert counts == {
        "train": {"blank": 1, "conflicting": 2, "leaked": 2, "copy": 1},
        "validation": {"blank": 1, "conflicting": 0, "leaked": 1, "copy": 0},
        "test": {"blank": 0, "conflicting": 0, "leaked": 0, "copy": 1},
    }
    assert kept.name == "paper, deduplicated"
    assert kept.notes == ("a note",)
    assert "train                   1            2            2            1            6" in (
        splits.format_dropped(counts)
    )


@pytest.mark.parametrize("name", splits.NAMES)
def test_after_deduplication_no_real_image_occurs_twice(name, real):
    split = splits.make_split(real, name)
    kept, counts = splits.deduplicate(real, split)
    rows = np.concatenate(list(kept.parts.values()))
    ids = duplicates.image_ids(real.images)
    assert len(np.unique(ids[rows])) == len(rows)
    assert not duplicates.blank_rows(real.images[rows]).any()
    # Every unambiguous image is still there: 34,034 less 57, the blank one among those.
    assert len(rows) == 33977
    for part, before in split.parts.items():
        assert len(before) - len(kept.parts[part]) == sum(counts[part].values())


def test_deduplication_that_empties_a_part_is_refused(small):
    images = small.images.copy()
    images[small.usage == 1] = images[small.usage == 2][0]
    dataset = replace(small, images=images, labels=np.zeros_like(small.labels))
    with pytest.raises(InputError, match="deduplication leaves no row for validation"):
        splits.deduplicate(dataset, splits.make_split(dataset, "official"))
