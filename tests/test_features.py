import errno
import fcntl
import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import cache, cut, feature_files, features
from fer_jax.errors import InputError
from fer_jax.feature_files import Entry, StoredArray

ROOT = Path(__file__).resolve().parent.parent
ROWS = 700  # three chunks of 256 rows, the last one short


@pytest.fixture(scope="module")
def faces():
    return np.random.default_rng(0).integers(0, 256, (ROWS, 48, 48), np.uint8)


class Upstream:
    """Two values a face; counts the faces that it was asked for."""

    def __init__(self):
        self.seen = 0

    def __call__(self, faces):
        if not isinstance(faces, jax.core.Tracer):
            self.seen += len(faces)
        values = faces.astype(jnp.float32)
        return values[:, :4, :6] / 255, values.mean((1, 2))


def expected(faces):
    values = np.asarray(faces, np.float32)
    return values[:, :4, :6] / np.float32(255), values.mean((1, 2))


def assert_features(arrays, faces):
    for ours, theirs in zip(arrays, expected(faces), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours[:], theirs, rtol=1e-6)


@pytest.fixture
def run(tmp_path, faces):
    """Computes the features of `faces` into a cache of the test's own."""

    def run(upstream=None, key="a", **changes):
        arguments = {"batch_size": 32, "max_gb": 1.0, "cache_dir": tmp_path} | changes
        return features.compute(upstream or Upstream(), faces, {"key": key}, **arguments)

    return run


def entry(tmp_path, suffix=""):
    (found,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir() and path.suffix == suffix)
    return found


@pytest.mark.parametrize("batch_size", [32, 100, 1000])
@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_rows_come_back_in_the_order_of_the_faces(run, faces, batch_size, memory_gb):
    arrays = run(batch_size=batch_size, memory_gb=memory_gb)
    assert_features(arrays, faces)
    assert all(isinstance(array, StoredArray) is (memory_gb == 0.0) for array in arrays)


def test_a_second_run_computes_nothing(run, faces):
    run()
    again = Upstream()
    assert_features(run(again), faces)
    assert again.seen == 0


def test_features_on_disk_are_read_and_checked_row_by_row(run, tmp_path, faces, caplog):
    run()
    flip_byte(entry(tmp_path) / "0.npy", -1)
    again = Upstream()
    first, _ = run(again, memory_gb=0.0)
    np.testing.assert_allclose(first[np.array([5, 2, 5, -2])], expected(faces)[0][[5, 2, 5, -2]], rtol=1e-6)
    assert again.seen == 0, "the last row has not been read"
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(first[ROWS - 9 :], expected(faces)[0][-9:], rtol=1e-6)
    assert again.seen == 6 * 32 + 64, "its chunk, and two batches that measure the speed"
    assert "1 damaged chunks" in caplog.text


def test_a_repair_is_read_where_the_file_is_another_one_by_now(run, tmp_path, faces):
    run()
    path = entry(tmp_path) / "0.npy"
    flip_byte(path, -1)
    first, _ = run(memory_gb=0.0)
    shutil.copy(path, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    np.testing.assert_allclose(first[ROWS - 9 :], expected(faces)[0][-9:], rtol=1e-6)
    np.testing.assert_allclose(first, expected(faces)[0], rtol=1e-6)


def test_a_disk_that_loses_what_a_repair_wrote_ends_the_run(run, tmp_path, monkeypatch):
    run()
    flip_byte(entry(tmp_path) / "0.npy", -1)
    first, _ = run(memory_gb=0.0)
    monkeypatch.setattr(first, "_fill", lambda chunks: None)
    with pytest.raises(InputError, match=r"0\.npy: the disk does not give back what was written"):
        first[:]


def test_a_repair_computes_in_the_batches_of_the_first_time_and_keeps_the_other_arrays(run, tmp_path, caplog):
    def upstream(faces):
        sizes.append(len(faces))
        values = faces.astype(jnp.float32)
        return values[:, :4, :6] * len(faces), values.mean((1, 2)) * len(faces)  # as rounding may differ

    sizes = []
    before = [np.array(array) for array in run(upstream, batch_size=100)]
    flip_byte(entry(tmp_path) / "0.npy", -1)
    sizes.clear()
    with caplog.at_level(logging.WARNING):
        for array, expected_values in zip(run(upstream, batch_size=32, memory_gb=0.0), before, strict=True):
            np.testing.assert_array_equal(array[:], expected_values)
    assert set(sizes) == {100}
    assert caplog.text.count("damaged") == 1


def test_files_are_plain_npy(run, tmp_path, faces):
    run()
    assert_features([np.load(entry(tmp_path) / f"{i}.npy") for i in range(2)], faces)


def test_bfloat16_comes_back_as_it_was(run, tmp_path, faces):
    def upstream(faces):
        return (faces[:, 0].astype(jnp.bfloat16) / 3,)

    for memory_gb in (0.0, 1.0):
        (array,) = run(upstream, memory_gb=memory_gb)
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array[:], np.asarray(upstream(jnp.asarray(faces))[0]))
    assert np.load(entry(tmp_path) / "0.npy").dtype == np.uint16


def flip_byte(path, position):
    with path.open("r+b") as file:
        position = file.seek(position, os.SEEK_SET if position >= 0 else os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("row", [0, 300, ROWS - 1])
def test_a_flipped_byte_is_noticed_and_its_chunk_computed_again(run, tmp_path, faces, row, caplog):
    run()
    path = entry(tmp_path) / "0.npy"
    header = path.stat().st_size - ROWS * 4 * 6 * 4
    flip_byte(path, header + row * 4 * 6 * 4 + 5)
    again = Upstream()
    with caplog.at_level(logging.WARNING):
        assert_features(run(again), faces)
    chunk = ROWS - 512 if row >= 512 else 256
    # The chunk in whole batches of 32, and two batches that measure the speed.
    assert again.seen == -(-chunk // 32) * 32 + 64
    assert "1 damaged chunks" in caplog.text
    third = Upstream()
    assert_features(run(third), faces)
    assert third.seen == 0


@pytest.mark.parametrize("damage", ["truncated", "lengthened", "removed", "header"])
def test_a_file_of_the_wrong_form_is_never_read(run, tmp_path, faces, damage):
    run()
    path = entry(tmp_path) / "1.npy"
    size = path.stat().st_size
    if damage == "removed":
        path.unlink()
    elif damage == "header":
        flip_byte(path, 20)
    else:
        os.truncate(path, size - 10 if damage == "truncated" else size + 10)
    assert_features(run(), faces)
    assert path.stat().st_size == size
    np.load(path)


def test_a_lost_file_is_computed_again_in_one_go(run, tmp_path, faces, caplog):
    run()
    (entry(tmp_path) / "1.npy").unlink()
    upstream = Upstream()
    assert_features(run(upstream), faces)
    batches = -(-ROWS // 32)
    assert upstream.seen == 32 * (batches + 2)  # one compiles, one is timed
    assert sum("damaged chunks" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("position", [3, 40])
def test_a_damaged_manifest_is_never_trusted(run, tmp_path, faces, position):
    run()
    flip_byte(entry(tmp_path) / "manifest.json", position)
    again = Upstream()
    assert_features(run(again), faces)
    assert again.seen > ROWS


def test_a_removal_that_is_killed_leaves_no_entry(run, tmp_path, faces, monkeypatch):
    run()
    whole = entry(tmp_path)
    size = sum(path.stat().st_size for path in whole.glob("*.npy"))

    def killed(folder, **_):
        (folder / "0.npy").unlink(missing_ok=True)

    monkeypatch.setattr(shutil, "rmtree", killed)
    run(key="b", max_gb=1.5 * size / 1e9)
    assert [path.name for path in whole.iterdir()] == ["1.npy"]
    assert Entry.read(whole) is None


KILLED = """
import os, signal, sys, time
from pathlib import Path
import jax.numpy as jnp, numpy as np
from fer_jax import features
faces = np.random.default_rng(0).integers(0, 256, (700, 48, 48), np.uint8)
batches = 0
def upstream(faces):
    global batches
    values = faces.astype(jnp.float32)
    batches += 1
    if batches > {batches}:
        {end}
    return values[:, :4, :6] / 255, values.mean((1, 2))
features.compute(upstream, faces, {{"key": "a"}}, batch_size=32, max_gb=1.0, cache_dir=Path({cache!r}))
"""


def start(tmp_path, batches, end):
    code = KILLED.format(batches=batches, end=end, cache=str(tmp_path))
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)


def test_a_killed_extraction_is_resumed_and_never_read_short(run, tmp_path, faces):
    # One trace for the shapes and two measured batches; then it dies within the second chunk of eight.
    killed = start(tmp_path, 3 + 8 + 4, "os.kill(os.getpid(), signal.SIGKILL)")
    _, error = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, error.decode()
    assert not [path for path in (tmp_path / "features").iterdir() if path.is_dir() and not path.suffix]
    assert (entry(tmp_path, ".partial") / "manifest.json").exists()
    resumed = Upstream()
    assert_features(run(resumed), faces)
    # 444 rows were missing: 14 batches, and two that measure the speed.
    assert resumed.seen == (8 + 6 + 2) * 32
    assert not list((tmp_path / "features").glob("*.partial"))


def test_damage_to_what_a_killed_extraction_left_is_noticed(run, tmp_path, faces):
    class Stop(Exception):
        pass

    class Stopping(Upstream):
        def __call__(self, faces):
            if self.seen > 32 * 12:
                raise Stop
            return super().__call__(faces)

    with pytest.raises(Stop):
        run(Stopping())
    flip_byte(entry(tmp_path, ".partial") / "0.npy", 1000)
    resumed = Upstream()
    assert_features(run(resumed), faces)
    # What was missing, then the damaged chunk as it was read, each with two batches that measure the speed.
    assert resumed.seen == 22 * 32 + 2 * 64


def test_another_run_waits_for_the_one_that_computes(run, tmp_path, faces):
    other = start(tmp_path, 3 + 8, "time.sleep(0.03)")
    while not list((tmp_path / "features").glob("*.partial")):
        assert other.poll() is None, other.stderr.read().decode()
        time.sleep(0.01)
    waiting = Upstream()
    assert_features(run(waiting), faces)
    _, error = other.communicate(timeout=60)
    assert other.returncode == 0, error.decode()
    assert waiting.seen == 0


def gigabytes(tmp_path):
    return sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.npy")) / 1e9


def test_the_least_recently_used_entry_goes_first(run, tmp_path):
    run(key="a")
    size = gigabytes(tmp_path)
    for key in ("b", "a", "c"):
        run(key=key, max_gb=2.5 * size)
        time.sleep(0.02)
    assert gigabytes(tmp_path) == pytest.approx(2 * size)
    kept = {key: Upstream() for key in ("a", "c", "b")}
    for key, upstream in kept.items():
        run(upstream, key=key, max_gb=2.5 * size)
    assert kept["a"].seen == kept["c"].seen == 0
    assert kept["b"].seen > 0


def test_an_entry_in_use_is_never_removed(run, tmp_path, faces):
    in_use = run(key="a", memory_gb=0.0)
    size = gigabytes(tmp_path)
    with pytest.raises(InputError, match=r"features\.max_gb: expected at least .* other runs use"):
        run(key="b", max_gb=1.5 * size)
    assert_features(in_use, faces)
    del in_use
    run(key="b", max_gb=1.5 * size)
    assert gigabytes(tmp_path) == pytest.approx(size)


def test_features_above_the_bound_are_refused_before_anything_is_computed_or_removed(run, tmp_path):
    run(key="a")
    upstream = Upstream()
    with pytest.raises(
        InputError, match=r"features\.max_gb: expected at least 0\.000 for these features, got"
    ):
        run(upstream, key="b", max_gb=0.5 * gigabytes(tmp_path))
    assert upstream.seen == 0
    entry(tmp_path)


def test_a_bound_below_features_that_are_there_removes_nothing(run, tmp_path):
    for key in ("a", "b"):
        run(key=key)
    size = gigabytes(tmp_path)
    with pytest.raises(InputError, match=r"features\.max_gb: expected at least .* features\.reuse=False"):
        run(key="b", max_gb=0.25 * size)
    assert gigabytes(tmp_path) == size


def test_nobody_else_counts_the_room_until_it_is_taken(run, tmp_path, monkeypatch):
    complete_files, locked = feature_files.Entry.complete_files, []

    def complete(entry):
        with (tmp_path / "features" / ".room").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked.append(True)
        complete_files(entry)

    monkeypatch.setattr(feature_files.Entry, "complete_files", complete)
    run()
    assert locked


def test_features_that_the_run_needs_beside_these_stay_or_have_their_room_from_the_start(run, tmp_path):
    other = {"key": "beside"}
    run(key="a")
    size, upstream = gigabytes(tmp_path), Upstream()
    with pytest.raises(InputError, match=r"features\.max_gb: expected at least"):
        run(upstream, key="b", max_gb=1.5 * size, beside=[other])
    assert upstream.seen == 0
    run(key="beside")
    run(key="later")
    run(key="b", max_gb=2.5 * size, beside=[other])
    assert gigabytes(tmp_path) == pytest.approx(2 * size), "those used longest ago made room, but for one"
    kept = Upstream()
    run(kept, key="beside")
    run(kept, key="b")
    assert kept.seen == 0


def test_a_disk_without_room_leaves_no_file_that_looks_whole(run, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match=r"0\.npy: no room for 0\.000 GB: No space left"):
            run()
    assert gigabytes(tmp_path) * 1e9 < 1000
    run()


def test_too_little_disk_is_an_error_before_anything_is_computed(run, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    upstream = Upstream()
    with pytest.raises(InputError, match=r"the features need 0\.000 GB of disk"):
        run(upstream)
    assert upstream.seen == 0


def test_the_disk_has_to_have_room_for_the_manifest_too(run, tmp_path, monkeypatch):
    run()
    arrays = gigabytes(tmp_path) * 1e9
    shutil.rmtree(tmp_path / "features")
    for free, enough in ((arrays + 100, False), (arrays + 100 * ROWS, True)):
        usage = type("Usage", (), {"free": free})()
        monkeypatch.setattr(features.shutil, "disk_usage", lambda path, usage=usage: usage)
        if enough:
            run()
            assert (entry(tmp_path) / "manifest.json").stat().st_size < 12 * 2 * ROWS
        else:
            with pytest.raises(InputError, match="of disk"):
                run()


UNWRITABLE = r"cannot be written \(.+\); \$FER_JAX_CACHE can name another place"


@pytest.mark.parametrize("long", [32, 33])
def test_a_value_that_another_axis_than_the_batch_leads_is_refused_before_anything_is_computed(run, long):
    def upstream(faces):
        return (faces[:, :long, 0].T,)

    with pytest.raises(ValueError, match="an axis that is not the batch leads"):
        run(upstream)


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_cache_that_cannot_be_made_is_named(run, tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{where}/features: {UNWRITABLE}"):
        run(cache_dir=tmp_path / where)


@pytest.mark.parametrize("suffix", [".lock", ".partial", ""])
def test_an_entry_that_cannot_be_written_is_named_before_anything_is_computed(run, tmp_path, suffix):
    run()
    whole = entry(tmp_path)
    shutil.rmtree(whole)
    whole.with_suffix(".lock").unlink()
    if suffix == ".lock":
        whole.with_suffix(suffix).mkdir()
    else:
        whole.with_suffix(suffix).write_text("")
    upstream = Upstream()
    with pytest.raises(InputError, match=UNWRITABLE):
        run(upstream)
    assert upstream.seen == 0


def test_a_disk_that_fills_up_meanwhile_is_an_error_in_one_line(run, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_files, "replacing", full)
    with pytest.raises(InputError, match=UNWRITABLE):
        run()


def test_the_plan_is_logged_before_work_starts(run, tmp_path, caplog):
    plan = []

    class Watching(Upstream):
        def __call__(self, faces):
            if self.seen == 64:  # after the two batches that measure the speed
                plan.extend(record.getMessage() for record in caplog.records)
            return super().__call__(faces)

    with caplog.at_level(logging.INFO):
        run(Watching())
    (line,) = plan
    assert line.startswith("features: 4x6 float32 + 1 float32 of each of 700 faces, 0.000 GB in ")
    assert str(tmp_path) in line
    assert "images/s: about" in line


def keyed(faces, kernel=0.0, head=0.0, scale=255.0, preprocessing="8 unit float32"):
    """The key of a tiny classifier: a frozen layer of the backbone, a head."""

    def forward(params, batch_stats, faces, key):
        x = faces.reshape(len(faces), -1)[:, :6] / scale @ params["backbone"]["frozen"]["kernel"]
        return jnp.tanh(x) @ params["head"]["kernel"], batch_stats

    params = {
        "backbone": {"frozen": {"kernel": jnp.ones((6, 4)) + kernel}},
        "head": {"kernel": jnp.ones((4, 3)) + head},
    }
    found, _ = cut.split(forward, params, {}, frozenset())
    return features.make_key(found, params, {}, cache.arrays_hash({"faces": faces}), preprocessing)


def test_the_key_changes_with_weights_faces_order_cut_and_preprocessing_but_not_with_the_head(faces):
    same = keyed(faces)
    assert keyed(faces.copy(), head=1.0) == same
    changed = {
        "weights": keyed(faces, kernel=1e-3),
        "data": keyed(faces[::-1]),
        "cut": keyed(faces, scale=127.5),
        "preprocessing": keyed(faces, preprocessing="8 unit bfloat16"),
    }
    for field, key in changed.items():
        assert {name for name in key if key[name] != same[name]} == {field}
    assert keyed(np.concatenate([faces[1:], faces[:1]]))["data"] != same["data"]


def test_the_key_is_the_same_in_another_process(faces):
    code = (
        "import sys; sys.path.insert(0, 'tests'); import numpy as np; from test_features import keyed;"
        "print(keyed(np.zeros((3, 48, 48), np.uint8)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == str(keyed(np.zeros((3, 48, 48), np.uint8))), result.stderr


def test_features_of_a_cut_serve_its_downstream(tmp_path, faces):
    def forward(params, batch_stats, faces, key):
        x = faces.reshape(len(faces), -1)[:, :6] / 255.0 @ params["backbone"]["frozen"]["kernel"]
        return jnp.tanh(x) @ params["head"]["kernel"], batch_stats

    random = np.random.default_rng(0)
    params = {
        "backbone": {"frozen": {"kernel": random.standard_normal((6, 4), np.float32)}},
        "head": {"kernel": random.standard_normal((4, 3), np.float32)},
    }
    found, _ = cut.split(forward, params, {}, frozenset())
    key = features.make_key(found, params, {}, cache.arrays_hash({"faces": faces}), "")
    upstream = functools.partial(jax.jit(found.upstream), params, {})
    arrays = features.compute(
        upstream, faces, key, batch_size=64, max_gb=1.0, cache_dir=tmp_path, memory_gb=0
    )
    rows = np.array([3, 699, 0, 400])
    logits, _ = found.downstream(
        *found.tail(params, {}), [array[rows] for array in arrays], jax.random.key(0)
    )
    np.testing.assert_allclose(logits, forward(params, {}, faces[rows], None)[0], rtol=1e-5)
