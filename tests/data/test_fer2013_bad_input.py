"""Every kind of bad input ends in one line that names file and row, and leaves nothing behind."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_jax.data import fer2013, prepared
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def refused(path, tmp_path):
    """The one line with which a path is refused; nothing may have been prepared."""
    with pytest.raises(InputError) as error:
        fer2013.load(path, tmp_path / "cache")
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert not list((tmp_path / "cache").rglob("*-v*"))
    return message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("12 13 14", "12 13", "row 3 (line 4): 2303 pixels; expected 2304 (48x48)"),
        ("12 13 14", "12 13 13 14", "row 3 (line 4): 2305 pixels; expected 2304 (48x48)"),
        ("12 13 14", "12 256 14", "row 3 (line 4): pixel 2 is '256'; expected a number from 0 to 255"),
        ("12 13 14", "12 -1 14", "row 3 (line 4): pixel 2 is '-1'; expected a number from 0 to 255"),
        ("12 13 14", "12 1.5 14", "row 3 (line 4): pixel 2 is '1.5'; expected a number from 0 to 255"),
        ("12 13 14", "12 x 14", "row 3 (line 4): pixel 2 is 'x'; expected a number from 0 to 255"),
        ("5,12", "7,12", "row 3 (line 4): emotion is '7'; expected 0 to 6"),
        ("5,12", "happy,12", "row 3 (line 4): emotion is 'happy'; expected 0 to 6"),
        (
            ",PublicTest",
            ",Test",
            "row 3 (line 4): Usage is 'Test'; expected Training, PublicTest, PrivateTest",
        ),
        (",PublicTest", "", "row 3 (line 4): 2 fields where the header has 3"),
    ],
)
def test_a_bad_row_is_named_with_what_was_expected(old, new, expected, tmp_path):
    good = "0," + " ".join(["7"] * 2304) + ",Training"
    bad = "5," + " ".join(["12", "13", "14", *["9"] * 2301]) + ",PublicTest"
    assert bad.count(old) == 1
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(["emotion,pixels,Usage", good, good, bad.replace(old, new), good]) + "\n")
    assert refused(path, tmp_path) == f"{path}: {expected}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty file; expected a header with emotion, pixels and Usage"),
        (b"emotion,pixels,Usage\n", "header but no rows"),
        (b"emotion,Usage\n1,Training\n", "header has no column 'pixels'; expected emotion, pixels and Usage"),
        (b"pixels,Usage\n1,Training\n", "header has no column 'emotion'"),
        (b"emotion,pixels\n1,2\n", "header has no column 'usage'"),
        ("emotion,pixels,Usage\n".encode("utf-16"), "header: not UTF-8 text"),
        (b"emotion,pixels,Usage\n1,\xe9,Training\n", "row 1 (line 2): not UTF-8 text"),
        (b"emotion,pixels,Usage\n" + b"1" * 70000, "row 1 (line 2): longer than 65536 bytes"),
    ],
)
def test_a_csv_that_is_no_fer2013_is_refused_by_its_first_fault(content, expected, tmp_path):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    assert refused(path, tmp_path).startswith(f"{path}: {expected}")


def test_a_bad_row_inside_an_archive_is_named_with_the_archive(tmp_path):
    path = tmp_path / "fer.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fer2013/fer2013.csv", "emotion,pixels,Usage\n9,1,Training\n")
    assert f"{path}:fer2013/fer2013.csv: row 1 (line 2): emotion is '9'" in refused(path, tmp_path)


def test_a_path_that_is_missing_of_another_kind_or_holds_nothing_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no faces here")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train" / "happy").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "no faces here")
    assert "no such file or directory" in refused(tmp_path / "nowhere.csv", tmp_path)
    assert "expected a directory or a .csv, .zip" in refused(tmp_path / "notes.txt", tmp_path)
    assert "no faces found; looked for fer2013.csv" in refused(tmp_path / "empty", tmp_path)
    assert "no faces found; looked for fer2013.csv" in refused(tmp_path / "other.zip", tmp_path)


@pytest.fixture
def folders(tmp_path):
    """Class folders with one good face of each emotion in each half."""
    for half in ("train", "test"):
        for name in CLASS_NAMES:
            folder = tmp_path / "faces" / half / name
            folder.mkdir(parents=True)
            Image.new("L", (48, 48), 9).save(folder / "a.png")
    return tmp_path / "faces"


@pytest.mark.parametrize("packed", ["", ".zip", ".tar.gz"])
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda p: (p / "b.png").write_bytes(b"not an image"), "train/happy/b.png: unreadable image"),
        (
            lambda p: (p / "b.png").write_bytes((p / "a.png").read_bytes()[:-30]),
            "train/happy/b.png: unreadable image",
        ),
        (lambda p: (p / "b.png").write_bytes(b""), "train/happy/b.png: empty file"),
        (lambda p: (p / "b.heic").write_bytes(b"ftypheic"), "train/happy/b.heic: unreadable image"),
        (
            lambda p: (p / "a.png").rename(p.parent / "a.png"),
            "train/a.png: expected images only in train/CLASS",
        ),
    ],
)
def test_a_bad_image_or_class_folder_is_named(spoil, expected, packed, folders, pack, tmp_path):
    spoil(folders / "train" / "happy")
    path = pack(folders, tmp_path / f"faces{packed}") if packed else folders
    assert f"{path}: {expected}" in refused(path, tmp_path)


def test_a_broken_link_is_named_and_a_named_pipe_is_not_waited_for(folders, tmp_path):
    link = folders / "train" / "happy" / "b.png"
    link.symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"^{link}: cannot be read \(No such file or directory\)$"):
        fer2013.load(folders, tmp_path / "cache")
    link.unlink()
    os.mkfifo(link)
    assert "train/happy/b.png: empty file" in refused(folders, tmp_path)


def test_of_several_bad_images_the_number_and_the_first_are_named(folders, tmp_path):
    for number in range(5):
        (folders / "train" / "sad" / f"{number}.png").write_bytes(b"x" * number)
    assert refused(folders, tmp_path).startswith(
        f"{folders}: 5 of 19 images cannot be read: train/sad/0.png, train/sad/1.png, train/sad/2.png, ...; "
        f"the first: {folders}: train/sad/0.png: empty file"
    )


def test_a_class_folder_without_images_is_named(folders, tmp_path):
    (folders / "train" / "sad" / "a.png").rename(folders / "train" / "sad" / "readme.txt")
    assert refused(folders, tmp_path) == f"{folders}: train/sad: folder without images; expected png or jpg"
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in sorted(folders.rglob("*")):
            archive.write(path, path.relative_to(folders).as_posix())
    assert "faces.zip: train/sad: folder without images" in refused(tmp_path / "faces.zip", tmp_path)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.95])
def test_a_truncated_archive_is_refused(suffix, kept, small, write_csv, pack, tmp_path):
    write_csv(small, tmp_path / "in" / "fer2013.csv")
    path = pack(tmp_path / "in", tmp_path / f"fer{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert refused(path, tmp_path).startswith(f"{path}: truncated or damaged archive")


def test_a_damaged_byte_inside_a_zip_is_noticed(small, write_csv, pack, tmp_path):
    write_csv(small, tmp_path / "in" / "fer2013.csv")
    path = pack(tmp_path / "in", tmp_path / "fer.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"fer\.zip"):
        fer2013.load(path, tmp_path / "cache")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_to_a_member_of_any_compression_is_refused(method, small, csv_rows, tmp_path):
    path = tmp_path / "fer.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("fer2013.csv", "\n".join(csv_rows(small)))
    whole = path.read_bytes()
    for place in np.linspace(45, len(whole) - 200, 20, dtype=int):
        content = bytearray(whole)
        content[place : place + 64] = bytes(64)
        path.write_bytes(content)
        refused(path, tmp_path)


@pytest.mark.parametrize(
    ("damaged", "why"), [(b"\0\0", "a member has no name"), (b"\xff\xff", "'utf-8' codec can't decode")]
)
def test_a_member_whose_name_is_lost_is_refused(damaged, why, tmp_path):
    path = tmp_path / "fer.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é", "")
    path.write_bytes(path.read_bytes().replace("é".encode(), damaged))
    assert refused(path, tmp_path).startswith(f"{path}: truncated or damaged archive ({why}")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("name", ["../fer2013.csv", "/fer2013.csv", "a/../../fer2013.csv", "C:\\fer2013.csv"])
def test_a_path_that_leaves_the_archive_is_refused(name, suffix, tmp_path):
    path = tmp_path / f"fer{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "emotion,pixels,Usage\n")
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert refused(path, tmp_path) == (
        f"{path}: member {name!r} leaves the archive; only paths inside it are read"
    )


def test_an_encrypted_zip_is_refused(tmp_path):
    path = tmp_path / "fer.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fer2013.csv", "emotion,pixels,Usage\n")
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    path.write_bytes(content)
    assert "cannot be read" in refused(path, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(small, write_csv, tmp_path):
    path = write_csv(small, tmp_path / "fer2013.csv")
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(InputError, match=r"cache.*cannot be written .*\$FER_JAX_CACHE"):
        fer2013.load(path, tmp_path / "cache")


def test_a_disk_that_fills_up_while_the_copy_is_written_is_named(small, write_csv, tmp_path, monkeypatch):
    def full(*arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: No space left on device")  # as array_record has it

    monkeypatch.setattr(prepared, "_write", full)
    path = write_csv(small, tmp_path / "fer2013.csv")
    with pytest.raises(InputError, match=r"cannot be written \(RESOURCE_EXHAUSTED.*\$FER_JAX_CACHE"):
        fer2013.load(path, tmp_path / "cache")


@pytest.mark.parametrize("side", [-1, 7, 1025])
def test_the_command_refuses_a_side_that_no_image_can_have(side, capsys):
    with pytest.raises(SystemExit) as stop:
        fer2013.main(["anywhere", f"--side={side}"])
    assert stop.value.code == 2


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_ends_with_one_line_and_status_2_and_a_traceback_only_with_debug(debug, tmp_path):
    path = tmp_path / "fer2013.csv"
    path.write_text("emotion,pixels,Usage\n7,1,Training\n")
    command = [sys.executable, "-m", "fer_jax.data.fer2013", str(path), *["--debug"] * debug]
    environment = {**os.environ, "FER_JAX_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    expected = f"{path}: row 1 (line 2): emotion is '7'; expected 0 to 6"
    assert run.stdout == ""
    if debug:
        assert run.returncode == 1
        assert "Traceback" in run.stderr
    else:
        assert run.returncode == 2
        assert run.stderr.splitlines()[-1] == f"error: {expected}"
        assert "Traceback" not in run.stderr
