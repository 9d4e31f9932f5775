"""Converted weights on disk: whole or absent, and checked when loaded."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_conversion
from fer_jax.errors import InputError
from weights_conversion import sources, store

VARIABLES = {
    "params": {"conv1": {"kernel": np.ones((1, 1, 2, 3), np.float32)}},
    "batch_stats": {"bn": {"moving_mean": np.arange(3, dtype=np.float32)}},
}
METADATA = {
    "backbone": "mobilenet",
    "alpha": 0.25,
    "include_top": False,
    "source_file": "w.h5",
    "source_sha256": "0123456789abcdef" * 4,
    "keras_version": "2.2.4",
    "converted_at": "2024-01-01T00:00:00+00:00",
    "licence": "Apache-2.0",
    "initialised": [],
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    store.save(tmp_path / "w", VARIABLES, METADATA)
    return tmp_path / "w"


def test_what_is_loaded_is_what_was_saved(directory: Path) -> None:
    loaded = weights_conversion.load(directory)
    assert loaded.keys() == VARIABLES.keys()
    np.testing.assert_array_equal(
        loaded["params"]["conv1"]["kernel"], VARIABLES["params"]["conv1"]["kernel"], strict=True
    )
    np.testing.assert_array_equal(
        loaded["batch_stats"]["bn"]["moving_mean"], VARIABLES["batch_stats"]["bn"]["moving_mean"], strict=True
    )


def test_metadata_counts_and_keeps_what_was_given(directory: Path) -> None:
    metadata = weights_conversion.load_metadata(directory)
    assert METADATA.items() <= metadata.items()
    assert (metadata["layers"], metadata["tensors"], metadata["parameters"]) == (2, 2, 9)
    assert set(metadata) == set(store.FIELDS)


def test_files_have_the_permissions_of_any_file(directory: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert directory.stat().st_mode & 0o777 == 0o777 & ~umask
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_damaged_weights_are_refused(directory: Path) -> None:
    path = directory / "weights.safetensors"
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    with pytest.raises(InputError, match=r"weights\.safetensors: sha256 is .*, expected "):
        weights_conversion.load(directory)
    path.unlink()
    with pytest.raises(InputError, match=r"weights\.safetensors: no such file"):
        weights_conversion.load(directory)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (None, "no converted weights here"),
        ("{", "not JSON"),
        ("[]", "expected format_version 1"),
        ('{"format_version": 2}', "expected format_version 1"),
        ('{"format_version": 1}', "field backbone is missing"),
    ],
)
def test_unusable_metadata_get_one_line(contents: str | None, reason: str, directory: Path) -> None:
    path = directory / "weights.json"
    path.unlink() if contents is None else path.write_text(contents)
    for function in (weights_conversion.load, weights_conversion.load_metadata):
        with pytest.raises(InputError, match=reason) as error:
            function(directory)
        assert "\n" not in str(error.value)


def test_a_field_of_the_wrong_type_is_named(directory: Path) -> None:
    path = directory / "weights.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha": "wide"}))
    with pytest.raises(InputError, match="field alpha"):
        weights_conversion.load_metadata(directory)


@pytest.mark.parametrize("there_before", [False, True])
def test_a_failure_while_writing_leaves_everything_as_it_was(
    there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there_before:
        store.save(tmp_path / "w", VARIABLES, METADATA)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full_disk(arrays: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "write_tensors", full_disk)
    with pytest.raises(InputError, match=r"w: cannot be written \(no space"):
        store.save(tmp_path / "w", VARIABLES, METADATA)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["w"] * there_before


def test_ctrl_c_while_weights_are_replaced_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tmp_path / "w", VARIABLES, METADATA)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        if source.name == "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(tmp_path / "w", VARIABLES, METADATA)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("backbone", "alpha", "include_top", "wanted"),
    [
        ("mobilenet", 0.5, False, "mobilenet alpha 0.5"),
        ("mobilenet", 0.2499999999, False, "mobilenet alpha 0.2499999999"),
        ("openface", 1.0, False, "openface"),
        ("mobilenet", 0.25, True, "mobilenet alpha 0.25 with classifier"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(
    backbone: str, alpha: float, include_top: bool, wanted: str
) -> None:
    with pytest.raises(InputError) as error:
        weights_conversion.check_fits(METADATA, backbone, alpha, include_top)
    assert str(error.value) == f"weights converted from w.h5 are of mobilenet alpha 0.25, expected {wanted}"


def test_published_widths_are_written_as_ever_and_others_never_like_them() -> None:
    names = [store.directory_name("mobilenet", alpha) for alpha in (1.0, 1, 0.75, 0.5, 0.25)]
    assert names == [f"mobilenet_{width}" for width in ("1", "1", "0.75", "0.5", "0.25")]
    with pytest.raises(InputError, match=r"alpha 0\.7499999 were published, only 1, 0\.75, 0\.5, 0\.25$"):
        sources.published("mobilenet", 0.7499999)


def test_weights_that_fit_are_accepted() -> None:
    weights_conversion.check_fits(METADATA, "mobilenet", 0.25)


def test_label_names_source_and_whatever_was_initialised() -> None:
    label = "mobilenet alpha 0.25 from w.h5 (sha256 0123456789ab)"
    assert weights_conversion.describe(METADATA) == label
    initialised = [{"tensor": "conv1/kernel", "initialiser": "glorot_uniform", "seed": 5}]
    assert weights_conversion.describe(METADATA | {"initialised": initialised}) == (
        f"{label}, conv1/kernel NOT from the file but initialised with seed 5"
    )
