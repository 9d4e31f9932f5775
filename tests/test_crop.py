import numpy as np
import pytest
from PIL import Image

from fer_jax import crop
from fer_jax.data import faces

FACES = faces.draw(40)[0][1:12]


def write_photo(path, *placed):
    """A grey photograph with drawn faces at (x, y, side)."""
    photo = np.full((300, 400), 110, np.uint8)
    for face, (x, y, side) in zip(FACES, placed, strict=False):
        photo[y : y + side, x : x + side] = np.asarray(Image.fromarray(face).resize((side, side)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    write_photo(root / "calm" / "one.png", (100, 60, 144))
    write_photo(root / "cross" / "two.jpg", (150, 30, 144), (20, 150, 70))
    return root


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_the_largest_face_of_a_photograph_is_cut_out_into_the_same_folder(photos, tmp_path):
    assert crop.main([str(photos), f"--output={tmp_path / 'faces'}"]) == 0
    assert written(tmp_path / "faces") == ["calm/one.png.1.png", "cross/two.jpg.1.png"]
    with Image.open(tmp_path / "faces/cross/two.jpg.1.png") as face:
        assert face.width == face.height
        assert abs(face.width - 144) < 40


def test_all_faces_and_a_margin_where_asked_for(photos, tmp_path):
    crop.main([str(photos), f"--output={tmp_path / 'plain'}", "--all"])
    crop.main([str(photos), f"--output={tmp_path / 'wide'}", "--all", "--margin=0.25"])
    assert written(tmp_path / "plain") == ["calm/one.png.1.png", "cross/two.jpg.1.png", "cross/two.jpg.2.png"]
    for name in written(tmp_path / "plain"):
        sizes = [Image.open(tmp_path / kind / name).width for kind in ("plain", "wide")]
        assert sizes[1] == pytest.approx(1.5 * sizes[0], abs=1)


def test_what_has_no_face_or_cannot_be_read_is_named_and_left_out(photos, tmp_path, capsys):
    write_photo(photos / "calm" / "empty_room.png")
    (photos / "cross" / "broken.jpg").write_bytes(b"")
    assert crop.main([str(photos), f"--output={tmp_path / 'faces'}"]) == 1
    assert len(written(tmp_path / "faces")) == 2
    errors = capsys.readouterr().err
    assert "empty_room.png: no face found" in errors
    assert "broken.jpg: empty file" in errors
    assert "2 photographs without one" in errors


def test_photographs_of_long_names_that_begin_alike_keep_a_face_each(photos, tmp_path):
    names = ["x" * 246 + ".png", "x" * 240 + "y.png"]
    for name in names:
        write_photo(photos / "calm" / name, (100, 60, 144))
    write_photo(photos / "calm" / names[1], (150, 30, 144), (20, 150, 70))
    assert crop.main([str(photos), f"--output={tmp_path / 'faces'}", "--all"]) == 0
    front = "x" * 220
    assert [name[len("calm/") :] for name in written(tmp_path / "faces") if front in name] == [
        f"{front}.1.png",
        f"{front}_2.1.png",
        f"{front}_2.2.png",
    ]


def test_linked_folders_are_cut_out_of_too_under_their_own_name(photos, tmp_path):
    (photos / "cross").rename(tmp_path / "elsewhere")
    (photos / "cross").symlink_to(tmp_path / "elsewhere")
    assert crop.main([str(photos), f"--output={tmp_path / 'faces'}"]) == 0
    assert written(tmp_path / "faces") == ["calm/one.png.1.png", "cross/two.jpg.1.png"]


def test_a_second_crop_into_the_same_folder_is_refused_and_what_a_killed_one_left_is_cleared(
    photos, tmp_path, capsys
):
    output = tmp_path / "faces"
    (left := tmp_path / ".faces.unfinished" / "faces" / "calm").mkdir(parents=True)
    (left / "old.png").touch()
    with crop._unfinished(output) as unfinished:
        assert not unfinished.exists()
        (unfinished / "calm").mkdir(parents=True)
        with pytest.raises(SystemExit) as stop:
            crop.main([str(photos), f"--output={output}"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"error: --output: another process is making {output}\n"
        assert (unfinished / "calm").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert crop.main([str(photos), f"--output={output}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "photos"]


def test_bad_arguments_end_with_a_line_and_status_2_and_nothing_is_written(photos, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (empty := tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    blank = tmp_path / "blank"
    write_photo(blank / "calm" / "room.png")
    for arguments, words in (
        ([str(tmp_path / "gone"), f"--output={tmp_path / 'faces'}"], "no such folder"),
        ([str(photos), f"--output={tmp_path / 'there'}"], "exists"),
        ([str(photos), f"--output={tmp_path / 'faces'}", "--margin=-1"], "--margin"),
        (
            [str(photos), f"--output={tmp_path / 'faces'}", "--margin=10"],
            "--margin: expected 0 to 1, of the box",
        ),
        ([str(photos), f"--output={tmp_path / 'faces'}", "--detector=best"], "detector: unknown"),
        ([str(blank), f"--output={tmp_path / 'faces'}"], "no face found in 1 photographs"),
        ([str(empty), f"--output={tmp_path / 'faces'}"], "empty: folder without images or videos"),
        ([str(photos), f"--output={tmp_path / 'faces'}", "--detector=none"], "none finds no faces"),
        ([str(photos), f"--output={tmp_path / 'dangling'}"], "exists"),
        ([str(photos), "--output=/proc/faces"], "error: /proc/faces: cannot be written ("),
        ([str(photos)], "--output"),
    ):
        with pytest.raises(SystemExit) as stop:
            crop.main(arguments)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["blank", "dangling", "empty", "photos", "there"]
