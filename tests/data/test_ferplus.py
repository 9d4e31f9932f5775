"""FER+'s votes become labels of FER2013's classes, or none; limits and splits leave out what has none."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from fer_jax.data import ferplus, loading, splits
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import InputError

HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def write(path, *rows):
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def test_the_most_votes_name_the_class_and_ties_and_other_emotions_name_none(tmp_path):
    file = write(
        tmp_path / "fer2013new.csv",
        "Training,fer0000000.png,1,8,0,0,1,0,0,0,0,0",
        "PublicTest,fer0000001.png,5,5,0,0,0,0,0,0,0,0",
        "PrivateTest,fer0000002.png,0,0,0,0,0,0,3,7,0,0",
        "Training,,0,0,0,0,0,0,0,0,0,10",
        "Training,fer0000003.png,0,0,0,0,0,1,6,3,0,0",
    )
    labels, note, sha256 = ferplus.majority_labels(file, np.array([0, 1, 2, 0, 0], np.uint8))
    assert [CLASS_NAMES[label] if label >= 0 else None for label in labels] == [
        "happy",
        None,
        None,
        None,
        "fear",
    ]
    assert "3 faces without one" in note
    assert len(sha256) == 64


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["Training,fer0000000.png,1,8,0,0,1,0,0,0,0,0"], "1 rows are not those of the 2 faces"),
        (["Training,fer0000000.png,1,8,0,0,1,0,0,0,0,0"] * 2, "rows are not those"),
        (
            ["Training,fer0000000.png,x,8,0,0,1,0,0,0,0,0", "PublicTest,fer0000001.png,1,8,0,0,1,0,0,0,0,0"],
            "whole numbers",
        ),
        (
            ["Training,fer0.png,99999999999999999999,8,0,0,1,0,0,0,0,0", "PublicTest,fer1.png" + ",1" * 10],
            "whole numbers",
        ),
        (["Training", "PublicTest"], "expected 10 votes in every row"),
        (["Training,fer0.png,1,8", "PublicTest,fer1.png,1,8"], "expected 10 votes in every row"),
        (["Training,fer0.png" + ",1" * 11, "PublicTest,fer1.png" + ",1" * 11], "expected 10 votes"),
    ],
)
def test_a_file_for_other_rows_or_without_numbers_is_refused(rows, words, tmp_path):
    with pytest.raises(InputError, match=words):
        ferplus.majority_labels(write(tmp_path / "f.csv", *rows), np.array([0, 1], np.uint8))


def test_a_file_of_another_form_is_refused(tmp_path):
    (tmp_path / "f.csv").write_text("emotion,pixels,Usage\n")
    with pytest.raises(InputError, match="expected FER"):
        ferplus.majority_labels(tmp_path / "f.csv", np.array([0], np.uint8))
    with pytest.raises(InputError, match="cannot be read"):
        ferplus.majority_labels(tmp_path / "nothing.csv", np.array([0], np.uint8))


def test_the_published_votes_agree_with_the_counts_of_the_shared_copy(shared):
    with np.load(shared / "data" / "fer2013.npz") as arrays:
        votes, usage = arrays["ferplus_votes"], arrays["usage"]
    labels, _, _ = ferplus.majority_labels(shared / "data" / "ferplus" / "fer2013new.csv", usage)
    first_seven = [CLASS_NAMES.index(name) for name in
                   ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear")]  # fmt: skip
    for row in np.random.default_rng(0).choice(len(votes), 500, replace=False):
        best = np.flatnonzero(votes[row] == votes[row].max())
        expected = first_seven[best[0]] if len(best) == 1 and best[0] < 7 else -1
        assert labels[row] == expected


def test_splits_leave_out_faces_without_a_label(small):
    import dataclasses

    labels = small.labels.copy()
    labels[::5] = -1
    dataset = dataclasses.replace(small, labels=labels)
    for name in splits.NAMES:
        split = splits.make_split(dataset, name)
        rows = np.concatenate(list(split.parts.values()))
        assert sorted(rows) == np.flatnonzero(labels >= 0).tolist()
    kept, _ = splits.deduplicate(dataset, splits.make_split(dataset, "paper"))
    assert (labels[kept.train] >= 0).all()


def config(path, **fields):
    defaults = {"path": str(path), "labels": "", "limit": 0, "drawn_faces": 10, "split": "paper",
                "fractions": (0.7, 0.1, 0.2), "split_seed": 42, "deduplicate": False, "side": 0}  # fmt: skip
    return ConfigDict(defaults | fields)


def test_a_limit_takes_faces_evenly_spread_over_the_rows_and_says_so(small_csv):
    whole, _, _ = loading.load(config(small_csv), 96)
    dataset, split, _ = loading.load(config(small_csv, limit=150), 96)
    assert len(dataset) == 150
    assert sum(map(len, split.parts.values())) == 150
    np.testing.assert_array_equal(dataset.images, whole.images[np.arange(150) * 200 // 150])
    assert any("LIMITED to 150 of 200" in note for note in dataset.notes)
    with pytest.raises(InputError, match=r"data.limit: expected 0"):
        loading.load(config(small_csv, limit=-1), 96)


def test_drawn_faces_take_no_labels_of_ferplus(tmp_path):
    with pytest.raises(InputError, match="go with the rows of FER2013's csv"):
        loading.load(config("drawn", labels=str(tmp_path / "fer2013new.csv"), drawn_faces=200), 96)
