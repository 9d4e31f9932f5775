"""Class folders of one's own: any names, sizes and colours, in folders or archives, split or not."""

import io
import os
import re
import tarfile
import time
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from fer_jax.data import containers, fer2013, loading, photos, prepared, readers, splits
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import InputError

ODD = ("Joie de vivre", "blasé", "~!")  # sorted as Python sorts: by code point


def image_of(label, index, size=(30, 40), colour=False):
    """(height, width) of noise about a shade of the class."""
    rng = np.random.default_rng((label, index))
    shape = (*size, 3) if colour else size
    return np.clip(60 * label + rng.normal(60, 20, shape), 0, 255).astype(np.uint8)


def write(root, names=ODD, count=10, parts=("",), suffix=".png", **options):
    """DIR/PART/CLASS/NUMBER.png, `count` images a class and part; the images in the order of the paths."""
    images = {}
    for part in parts:
        for label, name in enumerate(names):
            for index in range(count):
                path = root / part / name / f"{index:02}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                images[path.relative_to(root).as_posix()] = image_of(label, index, **options)
                Image.fromarray(images[path.relative_to(root).as_posix()]).save(path)
    return [images[path] for path in sorted(images)]


def load(path, tmp_path, **options):
    return fer2013.load(path, tmp_path / "cache", **options)


def refused(path, tmp_path, **options):
    """The one line with which a path is refused; nothing may have been prepared."""
    with pytest.raises(InputError) as error:
        load(path, tmp_path, **options)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*-v*"))
    return str(error.value)


def test_links_are_followed_in_any_order_but_not_into_the_folders_they_lie_in(tmp_path):
    root = tmp_path / "faces"
    write(root, names=("a", "b"))
    (root / "a" / "again").symlink_to("../b")
    (root / "b" / "back").symlink_to("..")
    listed = containers.listing(root)
    both = [f"{index:02}.png" for index in range(10)]
    assert [name for name in listed.files if name.startswith("a/again/") and name.count("/") == 2] == [
        f"a/again/{name}" for name in both
    ]
    assert {f"b/{name}" for name in both} < set(listed.files)
    assert not any("back" in name for name in (*listed.files, *listed.folders))


def test_a_source_whose_name_is_no_utf8_can_be_printed(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    write(root, names=("a", "b"))
    assert load(root, tmp_path).name == "caf\\xe9"


@pytest.mark.parametrize("packed", ["", ".zip", ".tar.gz"])
def test_classes_are_the_folders_by_name_whatever_they_are_called(packed, pack, tmp_path):
    root = tmp_path / "my faces"
    images = write(root / "inner", size=(48, 48))
    path = pack(root, tmp_path / f"packed{packed}") if packed else root
    dataset = load(path, tmp_path)
    assert (dataset.kind, dataset.class_names, dataset.usage) == ("own", ODD, None)
    assert (dataset.side, dataset.channels) == (48, 1)
    np.testing.assert_array_equal(dataset.images, images)
    assert dataset.labels.tolist() == np.repeat([0, 1, 2], 10).tolist()
    assert dataset.name == (f"packed{packed}:inner" if packed else "inner")
    assert dataset.notes == ("own data, not FER2013: images as grey squares of 48 pixels",)
    for name in splits.possible(dataset):
        assert sum(map(len, splits.make_split(dataset, name).parts.values())) == 30


def test_names_in_a_zip_that_does_not_say_they_are_utf8_are_read_as_such(tmp_path):
    root = tmp_path / "faces"
    write(root, names=("fröhlich", "müde"))
    packed = tmp_path / "faces.zip"
    names = {b"fr__hlich": "fröhlich".encode(), b"m__de": "müde".encode()}
    with zipfile.ZipFile(packed, "w") as archive:
        for path in root.rglob("*.png"):
            ascii_name = os.fsencode(path.relative_to(root))
            for plain, name in names.items():
                ascii_name = ascii_name.replace(name, plain)
            archive.writestr(ascii_name.decode(), path.read_bytes())
    content = packed.read_bytes()  # zipfile flags what is not ASCII
    for plain, name in names.items():
        content = content.replace(plain, name)
    packed.write_bytes(content)
    assert load(packed, tmp_path).class_names == ("fröhlich", "müde")


@pytest.mark.parametrize("parts", [("train", "valid", "test"), ("Training", "Testing", "Valid")])
def test_parts_are_known_by_their_other_usual_names_too(parts, tmp_path):
    write(tmp_path / "faces", names=("a", "b"), parts=parts)
    dataset = load(tmp_path / "faces", tmp_path)
    assert dataset.class_names == ("a", "b")
    assert np.bincount(dataset.usage).tolist() == [20, 20, 20]


def test_parts_without_train_are_no_classes(tmp_path):
    write(tmp_path / "faces", names=("a", "b"), parts=("valid", "test"))
    line = refused(tmp_path / "faces", tmp_path)
    assert line.endswith("test, valid: parts of a data set, not classes; expected train/ and test/")


@pytest.mark.parametrize("hard", [True, False])
def test_an_archive_with_links_is_refused_since_they_would_not_be_read(hard, tmp_path):
    root = tmp_path / "faces"
    write(root, names=("a", "b"))
    link = root / "a" / "link.png"
    link.hardlink_to(root / "a" / "00.png") if hard else link.symlink_to("00.png")
    with tarfile.open(tmp_path / "faces.tar.gz", "w:gz") as archive:
        archive.add(root, "faces")
    line = refused(tmp_path / "faces.tar.gz", tmp_path)
    assert re.search(r":faces: a/(link|00)\.png: expected files, found a link; make the archive by", line)


def test_links_in_a_tar_beside_what_is_wanted_do_not_matter(pack, tmp_path):
    write(tmp_path / "faces", names=("a", "b"), parts=("train", "test"))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "latest").symlink_to("1.0")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "a_tools.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "tools", "tools")
    pack(tmp_path / "faces", tmp_path / "data" / "faces.zip")
    assert len(load(tmp_path / "data", tmp_path).images) == 40


def test_what_a_tar_holds_is_listed_once_and_anew_when_it_has_changed(pack, tmp_path, monkeypatch):
    root = tmp_path / "faces"
    write(root, names=("a", "b"))
    read, passes = containers._read_tar_entries, []
    monkeypatch.setattr(containers, "_read_tar_entries", lambda path: passes.append(path) or read(path))
    packed = pack(root, tmp_path / "faces.tar.gz")
    for age in (100, 50):
        os.utime(packed, (time.time() - age,) * 2)
        for _ in range(2):
            containers._list_archive.cache_clear()  # as in another process
            assert containers.listing(packed) == containers.listing(root)
    assert len(passes) == 2


def test_folders_are_hashed_anew_where_an_image_has_changed_alone(tmp_path, monkeypatch):
    root = tmp_path / "faces"
    write(root, names=("a", "b"), suffix=".bmp")
    hashed, passes = prepared._folders_sha256, []
    monkeypatch.setattr(prepared, "_folders_sha256", lambda *a: passes.append(a) or hashed(*a))
    unpacked_as = (time.time() - 1e6,) * 2
    for path in root.rglob("*.bmp"):
        os.utime(path, unpacked_as)
    first = load(root, tmp_path).sha256
    assert load(root, tmp_path).sha256 == first
    assert len(passes) == 1
    changed = root / "a" / "00.bmp"
    before = changed.stat()
    Image.fromarray(image_of(5, 5)).save(changed)
    os.utime(changed, unpacked_as)
    after = changed.stat()
    assert [after.st_size, after.st_mtime_ns] == [before.st_size, before.st_mtime_ns]
    assert load(root, tmp_path).sha256 != first
    assert len(passes) == 2


def test_folders_called_as_emotions_alone_are_fer2013_s_classes_in_its_order(tmp_path):
    write(tmp_path / "faces", ("Sadness", "happy", "ANGER", "anger"), size=(48, 48))
    dataset = load(tmp_path / "faces", tmp_path)
    assert dataset.class_names == ("angry", "happy", "sad")
    assert np.bincount(dataset.labels).tolist() == [20, 10, 10]
    write(tmp_path / "faces", ("contempt",), size=(48, 48))
    assert load(tmp_path / "faces", tmp_path).class_names == (
        "ANGER",
        "Sadness",
        "anger",
        "contempt",
        "happy",
    )


def test_folders_inside_a_class_folder_belong_to_it_and_other_files_are_passed_over(tmp_path):
    root = tmp_path / "faces"
    write(root, ("a", "b"))
    write(root / "a", ("day 1", "day 2"), count=2)
    (root / "a" / "notes.txt").write_text("nothing")
    (root / "list.csv").write_text("nothing")
    dataset = load(root, tmp_path)
    assert dataset.class_names == ("a", "b")
    assert np.bincount(dataset.labels).tolist() == [14, 10]


def test_images_become_squares_of_48_pixels_where_none_is_larger_else_of_the_backbone_s_size(tmp_path):
    root = tmp_path / "faces"
    images = write(root, size=(30, 40))
    small = load(root, tmp_path, image_size=96)
    assert small.images.shape == (30, 48, 48)
    np.testing.assert_array_equal(small.images, [photos.squared(image, 48) for image in images])
    Image.fromarray(image_of(0, 0, (49, 20))).save(root / ODD[0] / "00.png")
    large = load(root, tmp_path, image_size=96)
    assert large.images.shape == (30, 96, 96)
    np.testing.assert_array_equal(large.images[1:], [photos.squared(image, 96) for image in images[1:]])
    assert load(root, tmp_path, side=20).images.shape == (30, 20, 20)
    assert "squares of 20 pixels" in load(root, tmp_path, side=20, image_size=96).notes[0]


def test_a_long_side_is_squashed_so_that_nothing_is_cut_off():
    wide = np.zeros((20, 60), np.uint8)
    wide[:, :30] = 200
    square = photos.squared(wide, 10)
    assert square.shape == (10, 10)
    assert (square[:, :4] == 200).all()
    assert (square[:, 6:] == 0).all()


def test_one_image_with_a_colour_makes_all_rgb_and_grey_ones_keep_their_pixels(tmp_path):
    root = tmp_path / "faces"
    grey = write(root, size=(48, 48))
    coloured = image_of(1, 0, (48, 48), colour=True)
    Image.fromarray(coloured).save(root / ODD[1] / "00.png")
    dataset = load(root, tmp_path)
    assert (dataset.images.shape, dataset.channels) == ((30, 48, 48, 3), 3)
    np.testing.assert_array_equal(dataset.images[10], coloured)
    np.testing.assert_array_equal(dataset.images[0], np.stack([grey[0]] * 3, -1))


@pytest.mark.parametrize(
    "odd",
    [
        np.zeros((48, 47), np.uint8),
        np.full((48, 48, 3), (1, 2, 3), np.uint8),
        np.zeros((96, 96), np.uint8),
    ],
)
def test_folders_called_as_fer2013_s_are_one_s_own_where_an_image_is_not_grey_and_48x48(
    odd, small, write_folders, tmp_path
):
    root = write_folders(small, tmp_path / "faces")
    assert load(root, tmp_path).kind == "folders"
    Image.fromarray(odd).save(root / "test" / "happy" / "odd.png")
    dataset = load(root, tmp_path)
    assert (dataset.kind, dataset.class_names) == ("own", CLASS_NAMES)
    assert "but not every image is grey and 48x48" in dataset.notes[0]


def test_a_side_that_fer2013_does_not_have_is_refused_for_it(small, write_csv, write_folders, tmp_path):
    for path in (write_csv(small, tmp_path / "fer2013.csv"), write_folders(small, tmp_path / "faces")):
        assert load(path, tmp_path, side=48).side == 48
        with pytest.raises(
            InputError, match=r"^data\.side: .*: FER2013's faces have 48 pixels, expected 0, got 64"
        ):
            load(path, tmp_path, side=64)


def test_a_prepared_copy_is_of_one_side_and_read_again_for_that_side_alone(tmp_path, monkeypatch, capfd):
    root = tmp_path / "faces"
    write(root, count=4, colour=True)
    first = load(root, tmp_path, side=20)
    load(root, tmp_path, side=24)
    assert len(list((tmp_path / "cache" / "fer2013").glob("*-v*"))) == 2
    capfd.readouterr()
    monkeypatch.setattr(readers, "read", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(prepared, "_read_arrays", lambda _: None)  # the records, not their faster copy
    again = load(root, tmp_path, side=20)
    assert "reading the prepared copy" in capfd.readouterr().err
    np.testing.assert_array_equal(again.images, first.images)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert (again.class_names, again.kind, again.sha256) == (ODD, "own", first.sha256)


def test_parts_by_folder_are_the_official_split(tmp_path):
    root = tmp_path / "faces"
    write(root, parts=("Train", "val", "test"), count=4)
    dataset = load(root, tmp_path)
    split = splits.make_split(dataset, "official")
    assert [len(rows) for rows in split.parts.values()] == [12, 12, 12]
    assert (dataset.usage[split.validation] == 1).all()
    assert (dataset.usage[split.test] == 2).all()
    assert split.notes == ()
    assert sum(map(len, splits.make_split(dataset, "paper").parts.values())) == 36


def test_without_a_validation_folder_some_of_train_is_split_off_and_said_so(tmp_path):
    root = tmp_path / "faces"
    write(root, parts=("train", "test"), count=20)
    dataset = load(root, tmp_path)
    split = splits.make_split(dataset, "official")
    assert [len(rows) for rows in split.parts.values()] == [48, 12, 60]
    assert (dataset.usage[split.validation] == 0).all()
    assert split.notes == (
        "official: there is no validation/, so validation is 12 faces split off from train/ "
        "(stratified, seed 42)",
    )


@pytest.mark.parametrize(("split", "told"), [("paper", 1), ("official", 0)])
def test_that_a_split_mixes_train_and_test_folders_is_said(split, told, tmp_path, caplog):
    write(tmp_path / "faces", parts=("train", "test"), count=20)
    with caplog.at_level("INFO"):
        loading.load(config(tmp_path / "faces", split=split), 32)
    assert caplog.text.count("train/ and test/ are mixed in this split") == told


def test_official_needs_train_and_test_folders_and_train_every_class(tmp_path):
    write(tmp_path / "flat")
    with pytest.raises(InputError, match="no Usage or train/ and test/, so no split 'official'"):
        splits.make_split(load(tmp_path / "flat", tmp_path), "official")
    write(tmp_path / "two", parts=("train", "validation"))
    with pytest.raises(InputError, match="split 'official': no image in test/"):
        splits.make_split(load(tmp_path / "two", tmp_path), "official")
    write(tmp_path / "typo", parts=("train", "test"))
    (tmp_path / "typo/train" / ODD[0]).rename(tmp_path / "typo/train/joie")
    with pytest.raises(InputError, match=f"no image of the class {ODD[0]} in train/"):
        splits.make_split(load(tmp_path / "typo", tmp_path), "official")


def test_what_is_no_set_of_classes_is_refused_in_one_line(tmp_path):
    write(tmp_path / "one", ("happy",))
    assert "no faces found; looked for fer2013.csv" in refused(tmp_path / "one", tmp_path)
    write(tmp_path / "same", ("happy", "Happiness"))
    assert "same: 1 classes of images; expected 2 to 256" in refused(tmp_path / "same", tmp_path)
    write(tmp_path / "loose", ("a", "b"))
    Image.new("L", (9, 9)).save(tmp_path / "loose" / "sheet.png")
    assert "loose: sheet.png: expected images only in CLASS/" in refused(tmp_path / "loose", tmp_path)
    write(tmp_path / "empty", ("a", "b"))
    (tmp_path / "empty" / "c").mkdir()
    assert "empty: c: folder without images" in refused(tmp_path / "empty", tmp_path)


@pytest.mark.parametrize("packed", ["", ".zip", ".tar.gz"])
def test_unreadable_images_are_counted_and_named(packed, pack, tmp_path):
    root = tmp_path / "faces"
    write(root, ("a", "b"))
    whole = (root / "a" / "00.png").read_bytes()
    (root / "a" / "00.png").write_bytes(whole[:-200])
    (root / "b" / "empty.jpg").write_bytes(b"")
    path = pack(root, tmp_path / f"faces{packed}") if packed else root
    assert refused(path, tmp_path).startswith(
        f"{path}: 2 of 21 images cannot be read: a/00.png, b/empty.jpg; "
        f"the first: {path}: a/00.png: unreadable image"
    )


def test_a_folder_that_cannot_be_read_is_refused_and_not_left_out(tmp_path, lock_folder):
    write(tmp_path / "own")
    lock_folder("~!")
    with pytest.raises(InputError, match=r"own/~!: cannot be read \(Permission denied\)$"):
        load(tmp_path / "own", tmp_path)


def test_class_folders_alone_are_no_default_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", ("figures", "photos"))
    assert fer2013.locate("") is None
    assert fer2013.locate("data") == "data"
    monkeypatch.setenv("FER2013", "data")
    assert fer2013.locate("") == "data"
    write(tmp_path / "data" / "set", ("a", "b"), parts=("train", "test"))
    monkeypatch.delenv("FER2013")
    assert fer2013.locate("") == "data"


def config(path, **fields):
    defaults = {"path": str(path), "labels": "", "limit": 0, "drawn_faces": 10, "split": "paper",
                "fractions": splits.FRACTIONS, "split_seed": 42, "deduplicate": False, "side": 0}  # fmt: skip
    return ConfigDict(defaults | fields)


def test_limit_fractions_and_deduplication_work_on_one_s_own(tmp_path):
    root = tmp_path / "faces"
    write(root, count=20, colour=True)
    twin = (root / ODD[0] / "00.png").read_bytes()
    for index in (1, 2, 3):
        (root / ODD[0] / f"0{index}.png").write_bytes(twin)
    dataset, split, dropped = loading.load(
        config(root, split="fractions", fractions=(0.5, 0.2, 0.3), deduplicate=True), 32
    )
    assert sum(map(sum, (counts.values() for counts in dropped.values()))) == 3
    rows = np.concatenate(list(split.parts.values()))
    assert len(np.unique(dataset.images[rows].reshape(len(rows), -1), axis=0)) == len(rows) == 57
    limited, split, _ = loading.load(config(root, split="fractions", fractions=(0.5, 0.2, 0.3), limit=30), 32)
    assert len(limited) == 30
    assert [len(rows) for rows in split.parts.values()] == [15, 6, 9]


@pytest.mark.parametrize("side", [-1, 7, 5000])
def test_a_side_out_of_range_is_refused(side, tmp_path):
    with pytest.raises(InputError, match=rf"^data\.side: expected 0, or 8 to 1024, got {side}$"):
        loading.load(config("drawn", side=side), 32)


def test_drawn_faces_have_one_side():
    with pytest.raises(InputError, match=r"^data\.side: drawn faces have 48 pixels, expected 0, got 64$"):
        loading.load(config("drawn", side=64), 32)


def test_labels_of_ferplus_are_refused_for_one_s_own(tmp_path):
    write(tmp_path / "faces", parts=("train", "test"))
    with pytest.raises(
        InputError, match=r"data\.labels: .*faces: FER\+'s labels go with the rows of FER2013's csv"
    ):
        loading.load(config(tmp_path / "faces", labels="fer2013new.csv"), 32)


def test_the_command_describes_one_s_own_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "faces", colour=True)
    Image.fromarray(np.full((40, 40, 3), (200, 10, 10), np.uint8)).save(
        tmp_path / "faces" / ODD[0] / "red.png"
    )
    fer2013.main([str(tmp_path / "faces"), "--side=20"])
    printed = capsys.readouterr().out
    assert "faces               31 of 20x20 pixels, RGB" in printed
    assert "blank images        1 " in printed
    assert "  Joie de vivre           " in printed
    assert "split fractions" in printed
    assert "split official" not in printed
    assert "NOTE: own data, not FER2013" in printed


def test_a_photograph_of_a_phone_lies_upright(tmp_path):
    root = tmp_path / "faces"
    write(root, ("a", "b"), size=(100, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    top_dark = np.zeros((60, 100), np.uint8)  # lies on its side: its left will be above
    top_dark[:, 50:] = 220
    file = io.BytesIO()
    Image.fromarray(top_dark).save(file, "JPEG", quality=95, exif=exif)
    (root / "a" / "phone.jpg").write_bytes(file.getvalue())
    phone = load(root, tmp_path, image_size=20).images[10]
    assert phone[:9].max() < 20
    assert phone[11:].min() > 200


def test_images_whose_names_are_not_utf8_are_read_as_others(tmp_path):
    images = write(tmp_path / "faces")
    first = tmp_path / "faces" / ODD[0] / "00.png"
    first.rename(first.with_name(os.fsdecode(b"00\xe9.png")))
    assert len(load(tmp_path / "faces", tmp_path).images) == len(images)


def test_a_class_whose_name_is_not_utf8_is_refused_in_a_line(tmp_path):
    write(tmp_path / "faces", names=("calm", os.fsdecode(b"f\xe9")))
    assert r"class folder 'f\udce9': expected a name in UTF-8" in refused(tmp_path / "faces", tmp_path)
