"""Every form of FER2013 is read into the same faces, prepared once, and read from that copy later."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_jax import cache
from fer_jax.data import fer2013, prepared, readers
from fer_jax.data.class_folders import SPELLINGS
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def assert_same_rows(loaded, expected):
    np.testing.assert_array_equal(loaded.images, expected.images)
    np.testing.assert_array_equal(loaded.labels, expected.labels)
    np.testing.assert_array_equal(loaded.usage, expected.usage)
    assert (loaded.images.dtype, loaded.labels.dtype, loaded.usage.dtype) == (np.uint8, np.int32, np.uint8)
    assert loaded.class_names == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def in_path_order(dataset):
    """The rows as class folders give them: sorted by path, usage 0 (train) or 2 (test)."""

    def path(index):
        half = "train" if dataset.usage[index] == 0 else "test"
        return f"{half}/{CLASS_NAMES[dataset.labels[index]]}/im{index}.png"

    order = sorted(range(len(dataset)), key=path)
    usage = np.where(dataset.usage[order] == 0, 0, 2).astype(np.uint8)
    return dataset.images[order], dataset.labels[order], usage


@pytest.mark.parametrize("packed", ["", ".zip", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("form", ["csv", "icml"])
def test_both_csv_forms_plain_and_packed_keep_the_row_order(
    form, packed, small, write_csv, write_icml, pack, tmp_path
):
    folder = tmp_path / "kaggle"
    folder.mkdir()
    if form == "csv":
        path = write_csv(small, folder / "fer2013.csv")
    else:
        path = write_icml(small, folder / "icml_face_data.csv")
    source = path
    if packed:
        path = pack(tmp_path, tmp_path / f"archive{packed}")
        source = f"{path}:kaggle/{source.name}"
    loaded = fer2013.load(path, tmp_path / "cache")
    assert_same_rows(loaded, small)
    assert (loaded.kind, loaded.source, loaded.notes) == (form, str(source), ())
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("packed", ["", ".zip", ".tar.gz"])
def test_class_folders_plain_and_packed_are_read_in_the_order_of_the_sorted_paths(
    packed, small, write_folders, pack, tmp_path
):
    path = write_folders(small, tmp_path / "faces")
    if packed:
        path = pack(path, tmp_path / f"faces{packed}")
    loaded = fer2013.load(path, tmp_path / "cache")
    images, labels, usage = in_path_order(small)
    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, labels)
    np.testing.assert_array_equal(loaded.usage, usage)
    assert loaded.kind == "folders"
    assert "sorted paths" in loaded.notes[0]


def test_a_file_is_hashed_anew_only_when_it_has_changed(small, write_csv, tmp_path, monkeypatch):
    path, hashed = write_csv(small, tmp_path / "fer2013.csv"), []
    digest = prepared._file_sha256
    monkeypatch.setattr(prepared, "_file_sha256", lambda path: hashed.append(path) or digest(path))
    os.utime(path, (1e9, 1e9))
    first = fer2013.load(path)
    assert fer2013.load(path).sha256 == first.sha256
    assert len(hashed) == 1
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *reversed(lines[1:])]))  # as long as before
    for _ in range(2):  # just changed, it might change again unnoticed
        assert fer2013.load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != first.sha256
    assert len(hashed) == 3
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert fer2013.load(path).sha256 != first.sha256


def test_the_sha256_of_class_folders_is_that_of_what_sha256sum_prints(small, write_folders, tmp_path):
    root = write_folders(small, tmp_path / "faces")
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    printed = "".join(f"{hashlib.sha256((root / path).read_bytes()).hexdigest()}  {path}\n" for path in paths)
    loaded = fer2013.load(root, tmp_path / "cache")
    assert loaded.sha256 == hashlib.sha256(printed.encode()).hexdigest()


def test_quotes_a_byte_order_mark_and_windows_line_ends_change_nothing(small, csv_rows, tmp_path):
    lines = [",".join(f'"{field}"' for field in line.split(",")) for line in csv_rows(small)]
    path = tmp_path / "export.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    assert_same_rows(fer2013.load(path, tmp_path / "cache"), small)


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        (("anger", "disgusted", "fearful", "happiness", "sadness", "surprised", "Neutral"), ".png"),
        (("ANGRY", "Disgust", "Fear", "HAPPY", "Sad", "Surprise", "neutral"), ".PNG"),
    ],
)
def test_class_folders_go_by_name_in_every_known_spelling(names, suffix, small, write_folders, tmp_path):
    root = write_folders(small, tmp_path / "faces", names, suffix)
    loaded = fer2013.load(root, tmp_path / "cache")
    by_image = {image.tobytes(): label for image, label in zip(small.images, small.labels, strict=True)}
    assert [by_image[image.tobytes()] for image in loaded.images] == loaded.labels.tolist()


def test_the_spellings_are_those_that_are_documented():
    documented = (
        "angry/anger disgust/disgusted fear/fearful happy/happiness sad/sadness surprise/surprised neutral"
    )
    expected = {name: label for label, names in enumerate(documented.split()) for name in names.split("/")}
    assert expected == SPELLINGS


def test_jpg_files_and_colour_files_whose_channels_are_equal_are_read_as_grey(tmp_path):
    face = np.random.default_rng(1).integers(0, 256, (48, 48), np.uint8)
    for half in ("train", "test"):
        for name in CLASS_NAMES:
            (tmp_path / "faces" / half / name).mkdir(parents=True)
            Image.fromarray(np.stack([face] * 3, -1)).save(tmp_path / "faces" / half / name / "a.png")
    Image.fromarray(face).save(tmp_path / "faces/test/happy/b.jpg", quality=95)
    Image.fromarray(face).convert("RGB").save(tmp_path / "faces/test/happy/c.jpeg", quality=95)
    loaded = fer2013.load(tmp_path / "faces", tmp_path / "cache")
    assert (loaded.kind, loaded.images.shape) == ("folders", (16, 48, 48))
    jpegs = [4, 5]  # in the order of the paths: angry, disgust, fear, happy/a, happy/b, happy/c
    for row in set(range(16)) - set(jpegs):
        np.testing.assert_array_equal(loaded.images[row], face)
    for row in jpegs:
        assert 0 < np.abs(loaded.images[row].astype(int) - face).mean() < 5


def test_a_directory_is_searched_in_the_documented_order(
    small, write_csv, write_icml, write_folders, pack, tmp_path
):
    root = tmp_path / "data"
    write_csv(small, root / "deep" / "er" / "fer2013.csv")
    write_icml(small, root / "icml_face_data.csv")
    write_folders(small, root / "images")
    pack(root / "images", root / "a.zip")
    found = []
    for gone in ("deep/er/fer2013.csv", "icml_face_data.csv", "images", "a.zip"):
        found.append(Path(fer2013._find(root).container).relative_to(root).as_posix())
        (root / gone).rename(tmp_path / Path(gone).name)
    assert found == ["deep/er/fer2013.csv", "icml_face_data.csv", "images", "a.zip"]
    with pytest.raises(
        InputError, match=r"data: no faces found; looked for fer2013\.csv, icml_face_data\.csv"
    ):
        fer2013._find(root)


def test_hidden_files_and_the_resource_forks_of_macos_are_passed_over(small, write_folders, pack, tmp_path):
    root = write_folders(small, tmp_path / "faces")
    (root / "train" / "happy" / "._im1.png").write_bytes(b"resource fork")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "__MACOSX" / "train" / "odd").mkdir(parents=True)
    (root / "__MACOSX" / "train" / "odd" / "im1.png").write_bytes(b"resource fork")
    assert len(fer2013.load(pack(root, tmp_path / "faces.zip"), tmp_path / "cache")) == len(small)
    assert len(fer2013.load(root, tmp_path / "cache")) == len(small)


def test_a_later_run_reads_the_prepared_copy_and_says_so(small, write_csv, tmp_path, monkeypatch, capfd):
    path = write_csv(small, tmp_path / "fer2013.csv")
    fer2013.load(path, tmp_path / "cache")
    assert "preparing it, once, in" in capfd.readouterr().err

    def refuse(source, sides):
        raise AssertionError("the source was parsed again")

    monkeypatch.setattr(readers, "read", refuse)
    assert_same_rows(fer2013.load(path, tmp_path / "cache"), small)
    out, err = capfd.readouterr()
    assert "reading the prepared copy in" in err
    assert out == ""


def test_another_source_gets_its_own_prepared_copy(small, csv_rows, tmp_path):
    path = tmp_path / "fer2013.csv"
    lines = csv_rows(small)
    for count in (100, 200):
        path.write_text("\n".join(lines[: count + 1]) + "\n")
        assert len(fer2013.load(path, tmp_path / "cache")) == count
    assert len(list((tmp_path / "cache" / "fer2013").glob("*-v*"))) == 2


def test_what_a_killed_preparation_left_behind_is_not_taken_for_whole(small, write_csv, tmp_path):
    path = write_csv(small, tmp_path / "fer2013.csv")
    target = (
        tmp_path
        / "cache"
        / "fer2013"
        / f"{hashlib.sha256(path.read_bytes()).hexdigest()}-v{prepared._VERSION}"
    )
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.mkdir(parents=True)
    (unfinished / "dataset_info.json").write_text("{")
    assert_same_rows(fer2013.load(path, tmp_path / "cache"), small)
    assert sorted(entry.name for entry in target.parent.iterdir()) == [".lock", target.name]


def test_a_preparation_that_fails_half_way_leaves_nothing(small, write_csv, tmp_path, monkeypatch):
    path = write_csv(small, tmp_path / "fer2013.csv")

    class Interrupted(BaseException):
        pass

    class Bar:
        def update(self):
            raise Interrupted

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(prepared, "tqdm", lambda *args, **options: Bar())
    monkeypatch.setattr(prepared, "_file_sha256", lambda path: "0" * 64)
    with pytest.raises(Interrupted):
        fer2013.load(path, tmp_path / "cache")
    assert [entry.name for entry in (tmp_path / "cache" / "fer2013").iterdir()] == [".lock"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_the_start_that_prepares_a_copy_does_not_read_its_records_back(
    small, write_csv, tmp_path, monkeypatch
):
    path = write_csv(small, tmp_path / "fer2013.csv")
    with monkeypatch.context() as patch:
        patch.delattr(prepared, "_read")
        first = fer2013.load(path, tmp_path / "cache")
    next((tmp_path / "cache").rglob("rows.npz")).unlink()
    assert_same_rows(fer2013.load(path, tmp_path / "cache"), first)


def test_a_damaged_prepared_copy_is_an_error_that_says_what_to_delete(small, write_csv, tmp_path):
    path = write_csv(small, tmp_path / "fer2013.csv")
    whole = fer2013.load(path, tmp_path / "cache")
    [arrays] = (tmp_path / "cache").rglob("rows.npz")
    flip_a_byte(arrays)
    assert_same_rows(fer2013.load(path, tmp_path / "cache"), whole)  # the records still stand
    [records] = (tmp_path / "cache").rglob("*array_record*")
    flip_a_byte(records)
    assert_same_rows(fer2013.load(path, tmp_path / "cache"), whole)  # the arrays were written anew
    flip_a_byte(arrays)
    with pytest.raises(InputError, match=r"damaged prepared copy .*delete this directory"):
        fer2013.load(path, tmp_path / "cache")


def test_a_run_imports_no_tensorflow_prints_nothing_and_writes_only_its_cache(small, write_csv, tmp_path):
    path = write_csv(small, tmp_path / "fer2013.csv")
    program = (
        "import sys, absl.logging; absl.logging.set_verbosity('info')\n"
        "from fer_jax.data import fer2013\n"
        f"fer2013.load({str(path)!r})\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TFDS", "XDG"))},
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "FER_JAX_CACHE": str(tmp_path / "cache"),
    }
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("data: ")
    assert list(home.iterdir()) == []
    assert list(temporary.iterdir()) == []
    assert list((tmp_path / "cache").iterdir()) == [tmp_path / "cache" / "fer2013"]


def test_the_cache_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("FER_JAX_CACHE", "")
    assert cache.cache_dir() == tmp_path / ".cache" / "fer_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "fer_jax"
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "own"))
    assert cache.cache_dir() == tmp_path / "own"


def test_locate_takes_the_given_path_then_the_environment_then_data(small, write_csv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FER2013", raising=False)
    assert fer2013.locate("") is None
    (tmp_path / "data").mkdir()
    assert fer2013.locate("") is None
    write_csv(small, tmp_path / "data" / "fer2013.csv")
    assert fer2013.locate("") == "data"
    own = str(write_csv(small, tmp_path / "own" / "fer2013.csv"))
    monkeypatch.setenv("FER2013", own)
    assert fer2013.locate("") == own
    assert fer2013.locate("data") == "data"
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "nowhere"):
        monkeypatch.setenv("FER2013", missing)
        with pytest.raises(InputError, match=rf"{missing}: no .*fer2013\.csv, icml_face_data\.csv"):
            fer2013.locate("")


def test_the_prepared_copy_of_real_rows_gives_them_back(real, write_csv, tmp_path):
    rows = np.r_[0:60, len(real) - 60 : len(real)]
    part = type(real)(real.images[rows], real.labels[rows], real.usage[rows], CLASS_NAMES, "csv", "", "")
    loaded = fer2013.load(write_csv(part, tmp_path / "fer2013.csv"), tmp_path / "cache")
    assert_same_rows(loaded, part)
