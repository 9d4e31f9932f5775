"""Arrays that are remembered come back as they were; what is damaged is computed again."""

import numpy as np
import pytest

from fer_jax import cache
from fer_jax.errors import InputError

NAMES = ("kept", "taken")


def test_arrays_are_computed_once_and_again_where_their_file_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path))
    calls = []

    def compute():
        calls.append(1)
        return {"kept": np.arange(5), "taken": np.arange(2)}

    for _ in range(2):
        found = cache.remembered("splits", "a key", NAMES, compute)
        np.testing.assert_array_equal(found["kept"], np.arange(5))
    assert len(calls) == 1
    cache.remembered("splits", "another key \udce9", NAMES, compute)
    assert len(calls) == 2
    for path in (tmp_path / "splits").iterdir():
        content = bytearray(path.read_bytes())
        content[content.index(np.arange(5).tobytes()) + 8] ^= 1
        path.write_bytes(content)
    found = cache.remembered("splits", "a key", NAMES, compute)
    np.testing.assert_array_equal(found["taken"], np.arange(2))
    assert len(calls) == 3


def test_no_flipped_byte_changes_what_is_remembered_or_stops_a_start(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path))
    arrays = {"kept": np.arange(5), "taken": np.arange(2)}
    cache.remembered("splits", "a key", NAMES, lambda: arrays)
    (path,) = (tmp_path / "splits").iterdir()
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        found = cache.remembered("splits", "a key", NAMES, lambda: arrays)
        for name in NAMES:
            np.testing.assert_array_equal(found[name], arrays[name])


def test_a_home_that_nobody_knows_is_an_error_that_names_the_variable(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FER_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", unknown)
    with pytest.raises(InputError, match=r"no home directory is known; \$FER_JAX_CACHE can name another"):
        cache.cache_dir()


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "file"))
    assert cache.remembered("splits", "key", ["a"], lambda: {"a": np.ones(1)})["a"] == 1
