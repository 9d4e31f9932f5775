"""Files are written whole, under any name that a file system takes."""

import os

import numpy as np
import pytest
from safetensors import SafetensorError

from fer_jax import files
from fer_jax.errors import InputError


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path):
    for name in ("a" * 251 + ".txt", "\u00e9" * 125 + ".txt"):
        with files.replacing(tmp_path / name) as temporary:
            temporary.write_text("whole")
        assert (tmp_path / name).read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_name_is_shortened_by_whole_letters():
    assert [files.shortened("\u00e9t\u00e9", size) for size in (5, 4, 3, 0)] == [
        "\u00e9t\u00e9",
        "\u00e9t",
        "\u00e9t",
        "",
    ]
    assert files.shortened("a\udcff", 2) == "a\udcff"


def test_who_does_not_wait_for_a_lock_is_told_so_in_the_words_asked_for(tmp_path):
    with (
        files.locked(tmp_path / "lock"),
        pytest.raises(InputError, match=r"^somebody is in$"),
        files.locked(tmp_path / "lock", busy="somebody is in"),
    ):
        pass
    with files.locked(tmp_path / "lock", busy="somebody is in"):
        pass


def test_tensors_have_the_permissions_of_any_file(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_tensors({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_the_system_s_error_where_tensors_are_written(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with (
        pytest.raises(InputError, match=r"x: cannot be written \(No space left"),
        files.writing_to(tmp_path / "x"),
    ):
        files.write_tensors({"x": np.zeros(3, np.float32)}, tmp_path / "x")
