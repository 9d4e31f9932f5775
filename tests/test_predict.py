"""The command: a row a face, a reason where there is none, and files that are whole or not there."""

import contextlib
import csv
import json
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_model
from PIL import Image

import fer_jax
from fer_jax import inputs, predict, prediction_files, predictor
from fer_jax.data import faces
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import InputError

FACES = faces.draw(40)[0][:12]  # those from 1 on OpenCV detects


def scene(*chosen):
    """A photograph, uint8 [300, 400], with faces of 144 pixels side by side."""
    photo = np.full((300, 400), 110, np.uint8)
    for place, index in enumerate(chosen):
        x = 30 + 180 * place
        photo[80:224, x : x + 144] = np.asarray(Image.fromarray(FACES[index]).resize((144, 144)))
    return photo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """Runs the command in a directory of its own; exit status."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        return predict.main([f"--model={model}", *map(str, arguments)])

    return command


def test_a_line_a_face_and_json_in_the_shape_of_deepface(run, model, tmp_path, capsys):
    Image.fromarray(scene(2, 4)).save("two.png")
    Image.fromarray(scene(3)).save("one.png")
    assert run("two.png", "one.png", "--output=out.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("two.png  face 1 at ")
    assert lines[2].startswith("one.png  face 1 at ")
    images = json.loads((tmp_path / "out.json").read_text())
    assert [len(image) for image in images] == [2, 1]
    for image, name in zip(images, ("two.png", "one.png"), strict=True):
        for face in image:
            assert list(face) == [
                "file", "region", "face_confidence", "emotion", "dominant_emotion", "model_sha256"
            ]  # fmt: skip
            assert face["file"] == name
            assert set(face["region"]) == set("xywh")
            assert all(isinstance(value, int) for value in face["region"].values())
            assert 0 < face["face_confidence"] <= 1
            assert tuple(face["emotion"]) == CLASS_NAMES
            assert sum(face["emotion"].values()) == pytest.approx(100)
            assert face["dominant_emotion"] == max(face["emotion"], key=face["emotion"].get)
            assert face["model_sha256"] == fer_jax.load(model).sha256
    assert images[0][0]["emotion"] != images[0][1]["emotion"]


def test_csv_and_jsonl_have_a_row_a_face_with_the_same_numbers(run, tmp_path):
    Image.fromarray(scene(2, 4)).save("two.png")
    (tmp_path / "empty.jpg").touch()
    for form in ("json", "csv", "jsonl"):
        assert run("two.png", "empty.jpg", f"--output=out.{form}") == 1
    expected = [face for image in json.loads((tmp_path / "out.json").read_text()) for face in image]
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").open()] == expected
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == len(expected) == 3
    for row, face in zip(rows[:2], expected, strict=False):
        assert {name: int(row[name]) for name in "xywh"} == face["region"]
        assert {name: float(row[name]) for name in CLASS_NAMES} == face["emotion"]
        assert row["dominant_emotion"] == face["dominant_emotion"]
        assert row["error"] == row["seconds"] == ""
    assert (rows[2]["file"], rows[2]["error"]) == ("empty.jpg", "empty file; expected an image")
    assert rows[2]["x"] == rows[2]["happy"] == rows[2]["dominant_emotion"] == ""


def test_what_has_no_face_is_a_row_and_a_warning_and_never_the_end(run, tmp_path, capsys):
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder").mkdir()
    (tmp_path / "clip.mp4").write_text("no video")
    Image.fromarray(np.full((50, 60), 7, np.uint8)).save("plain.png")
    Image.fromarray(scene(3)).save("one.png")
    names = ["zero.png", "text.jpg", "folder", "clip.mp4", "plain.png", "absent.jpg", "one.png"]
    assert run(*names, "--output=out.jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["file"] for row in rows] == names
    reasons = ("empty file", "unreadable image", "folder without images", "unreadable video", "no face found",
               "cannot be read (No such file")  # fmt: skip
    warnings = capsys.readouterr().err.splitlines()
    for row, reason in zip(rows, reasons, strict=False):
        assert row["error"].startswith(reason)
        assert f"warning: {row['file']}: {row['error']}" in warnings
        assert row["dominant_emotion"] is None
    assert "error" not in rows[6]
    assert warnings[-1] == "7 images or frames, 1 faces, 1 without a face, 5 not read"


def test_every_kind_of_image_is_read_upright(run, tmp_path):
    photo = Image.fromarray(scene(3))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.rotate(90, expand=True).save("turned.jpg", exif=exif, quality=95)
    photo.convert("RGBA").save("rgba.png")
    photo.convert("P").save("palette.png")
    Image.fromarray(np.asarray(photo).astype(np.uint16) * 257).save("deep.png")
    Image.new("L", (20_000, 2), 90).save("wide.png")
    assert run("turned.jpg", "rgba.png", "palette.png", "deep.png", "wide.png", "--output=out.json") == 1
    images = json.loads((tmp_path / "out.json").read_text())
    assert images[4][0]["error"] == "no face found"
    for (face,) in images[:4]:
        assert face["region"] == pytest.approx(images[1][0]["region"], abs=6)


def test_folders_are_walked_in_sorted_order_hidden_and_other_files_left_out(run, tmp_path):
    for place in ("b/2.PNG", "b/10.png", "a/x.png", "c.png", ".hidden/y.png", "a/.z.png"):
        (tmp_path / "folder" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FACES[1]).save(tmp_path / "folder" / place)
    (tmp_path / "folder" / "notes.txt").touch()
    assert run("folder", "--detector=none", "--output=out.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["file"] for row in rows] == [
        "folder/c.png", "folder/a/x.png", "folder/b/10.png", "folder/b/2.PNG"
    ]  # fmt: skip
    assert rows[0]["region"] == {"x": 0, "y": 0, "w": 48, "h": 48}
    assert rows[0]["face_confidence"] == 0


def test_linked_folders_are_walked_once_and_those_that_cannot_be_read_are_rows(run, tmp_path, lock_folder):
    for place in ("elsewhere/x.png", "folder/locked/y.png", "folder/z.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FACES[1]).save(tmp_path / place)
    (tmp_path / "folder/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "folder")
    lock_folder("locked")
    assert run("folder", "--detector=none", "--output=out.jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [(row["file"], row.get("error")) for row in rows] == [
        ("folder/z.png", None),
        ("folder/linked/x.png", None),
        ("folder/locked", "cannot be read (Permission denied)"),
    ]


def test_names_that_are_not_utf8_are_rows_like_others_on_stdout_and_in_every_file(
    run, clip, tmp_path, monkeypatch
):
    photo, film = os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"film \xe9.mp4")
    Image.fromarray(FACES[1]).save(photo)
    (tmp_path / "clip.mp4").rename(film)
    with open("lines.txt", "w", encoding="utf-8") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        for form in ("json", "jsonl", "csv"):
            arguments = ("--detector=none", "--fps=1", f"--output=out.{form}", "--annotate=out")
            assert run(photo, film, *arguments) == 0
    assert (tmp_path / "lines.txt").read_text("utf-8").startswith("caf\\udce9.png  face 1 at ")
    expected = [photo, film, film, film]
    images = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert [face["file"] for image in images for face in image] == expected
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["file"] for line in lines] == expected
    assert [row["file"] for row in csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8"))] == [
        "caf\\udce9.png", *["film \\udce9.mp4"] * 3
    ]  # fmt: skip
    assert sorted(os.listdir(b"out")) == [b"caf\xe9_annotated.jpg", b"film \xe9_annotated.mp4"]


def test_a_link_to_itself_is_a_row_with_its_reason_also_where_copies_are_annotated(run, tmp_path, capsys):
    Path("loop.png").symlink_to("loop.png")
    assert run("loop.png", "--detector=none", "--annotate=out", "--output=out.json") == 1
    assert "symbolic links" in json.loads(Path("out.json").read_text())[0][0]["error"]
    Path("other").symlink_to("other")
    with pytest.raises(SystemExit) as end:
        run("loop.png", "--annotate=other")
    assert end.value.code == 2
    assert "error: other: cannot be written" in capsys.readouterr().err


def test_a_closed_stdout_ends_quietly_and_leaves_no_half_file(run, tmp_path, capsys, monkeypatch):
    Image.fromarray(FACES[1]).save("one.png")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end:
            run("one.png", "--detector=none", "--output=out.json")
    assert end.value.code == 141
    assert capsys.readouterr().err == "model: a small model\n"
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


@pytest.mark.parametrize("buffering", [1, -1])
def test_a_full_disk_under_stdout_is_told_in_one_line(run, tmp_path, capsys, monkeypatch, buffering):
    Image.fromarray(FACES[1]).save("one.png")
    with open("/dev/full", "w", buffering=buffering) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end:
            run("one.png", "--detector=none", "--output=out.json")
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: stdout: cannot be written (No space left on device)"


def test_pipes_in_a_folder_and_on_the_command_line_are_rows_and_not_waited_for(run, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a.jpg", "b.mp4"):
        os.mkfifo(tmp_path / "folder" / name)
    reading, writing = os.pipe()
    with open(reading), open(writing):
        assert run("folder", f"/dev/fd/{reading}", "--output=out.jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["error"].split(";")[0] for row in rows] == ["not a regular file"] * 3


@pytest.fixture
def clip(tmp_path):
    """Two seconds at 10 a second with a face, then one without."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (400, 300))
    for index in range(30):
        writer.write(cv2.cvtColor(scene(*(3,) * (index < 20)), cv2.COLOR_GRAY2BGR))
    writer.release()


def test_a_video_gives_a_row_a_face_a_frame_with_its_time_and_an_annotated_video(run, clip, tmp_path, capsys):
    assert run("clip.mp4", "--fps=2", "--output=out.jsonl", "--annotate=out") == 1
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["seconds"] for row in rows] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert [row.get("error") for row in rows] == [None] * 4 + ["no face found"] * 2
    assert "clip.mp4  0.50 s  face 1 at " in capsys.readouterr().out
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip_annotated.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (6, 2)


def test_an_annotated_video_slower_than_asked_for_keeps_its_own_rate(run, clip, tmp_path):
    assert run("clip.mp4", "--fps=25", "--detector=none", "--annotate=out") == 0
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip_annotated.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (30, 10)


def test_a_long_number_that_is_no_file_is_a_missing_file_and_no_webcam():
    webcam, missing = inputs.sources(["12", "20240131123456"])
    assert (webcam.webcam, missing.webcam) == (12, None)


def test_a_webcam_gives_rows_with_their_times_and_an_annotated_video_until_ctrl_c(
    run, clip, tmp_path, monkeypatch, capsys
):
    opened = cv2.VideoCapture("clip.mp4", cv2.CAP_FFMPEG)

    class Camera:  # OpenCV's own class, made a base, is freed wrongly
        """Shows the clip, slower than is asked for; Ctrl-C comes with the third frame."""

        grabbed = 0

        def __getattr__(self, name):
            return getattr(opened, name)

        def grab(self):
            time.sleep(0.05)
            self.grabbed += 1
            if self.grabbed == 3:
                signal.raise_signal(signal.SIGINT)
            return opened.grab()

    with monkeypatch.context() as patched:
        files = cv2.VideoCapture
        patched.setattr(cv2, "VideoCapture", lambda source, *_: files(source) if source else Camera())
        assert run("0", "--fps=50", "--output=out.jsonl", "--annotate=out") == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [row["file"] for row in rows] == ["webcam 0"] * 3
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"] < rows[2]["seconds"]
    assert capsys.readouterr().out.startswith("webcam 0  ")
    capture = cv2.VideoCapture(str(tmp_path / "out" / "webcam_0_annotated.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (3, 50)


def test_annotated_photographs_keep_their_folders_and_overwrite_nothing(run, tmp_path):
    for place in ("in/a/one.png", "in/a/one.jpg", "in/b/two.png", "one.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(3)).save(tmp_path / place)
    for _ in range(2):  # what is in out is no input
        assert run("in", "one.png", "--annotate=in/out") == 0
        written = [path.relative_to(tmp_path / "in/out") for path in (tmp_path / "in/out").rglob("*.*")]
        assert sorted(map(str, written)) == [
            "a/one_annotated.jpg", "a/one_annotated_2.jpg", "b/two_annotated.jpg", "one_annotated.jpg"
        ]  # fmt: skip
    (tmp_path / "in/a/one.jpg").rename("one_annotated.jpg")
    before = (tmp_path / "one_annotated.jpg").read_bytes()
    assert run("one_annotated.jpg", "one.png", "--annotate=.") == 0
    assert (tmp_path / "one_annotated.jpg").read_bytes() == before
    with Image.open(tmp_path / "one_annotated_2.jpg") as image:
        assert image.width > 640


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected at least one photograph"),
        (["x.png", "--fps=1e-6"], "--fps: expected 0.01 to 1000, got 1e-06"),
        (["x.png", "--fps=nan"], "--fps: expected 0.01 to 1000, got nan"),
        (["x.png", "--fps=often"], "--fps"),
        (["x.png", "--margin=-1"], "margin"),
        (["x.png", "--batch_size=0"], "batch_size"),
        (["x.png", "--min_confidence=2"], "min_confidence"),
        (["x.png", "--detector=mtcnn"], "detector: unknown 'mtcnn'"),
        (["x.png", "--output=out.xml"], "out.xml: expected a name that ends with .json, .jsonl, .csv"),
        (["x.png", "--output=no/out.csv"], "no/out.csv: expected a file in a directory that exists"),
        ([".", "--annotate=."], "other folders"),
        (["x.png", "--model=nowhere"], "nowhere: no such file, expected a trained model"),
        (["x.png", "--sharp"], "--sharp"),
    ],
)
def test_bad_arguments_end_in_one_line_and_status_2_and_write_nothing(
    run, tmp_path, capsys, arguments, words
):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir())


def test_an_output_that_breaks_off_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("before")
    prediction = predictor.Prediction("a.png", (), "why", "0" * 64)
    with contextlib.suppress(KeyboardInterrupt), prediction_files.writing(path, CLASS_NAMES) as write:
        write(prediction)
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert path.read_text() == "before"
    with prediction_files.writing(path, CLASS_NAMES):
        pass
    assert json.loads(path.read_text()) == []
    with pytest.raises(InputError, match="expected a name"):
        prediction_files.check(tmp_path / "out")


def test_classes_called_like_columns_of_a_csv_overwrite_none(tmp_path):
    labels = ("x", "error", "calm")
    face = predictor.Face({"x": 1, "y": 2, "w": 3, "h": 4}, 0.5, {"x": 70.0, "error": 20.0, "calm": 10.0})
    with prediction_files.writing(tmp_path / "out.csv", labels) as write:
        write(predictor.Prediction("a.png", (face,), "", "0" * 64))
    header, row = csv.reader((tmp_path / "out.csv").open())
    assert len(header) == len({*header})
    row = dict(zip(header, row, strict=True))
    assert (row["x"], row["error"]) == ("1", "")
    assert [row[f"emotion_{label}"] for label in labels] == ["70.0", "20.0", "10.0"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(InputError("why"), "^why$"), (BrokenPipeError(32, "Broken pipe"), "^.Errno 32.")],
)
def test_an_output_is_not_blamed_for_what_its_caller_raises(tmp_path, raised, expected):
    with (
        pytest.raises(type(raised), match=expected),
        prediction_files.writing(tmp_path / "out.json", CLASS_NAMES),
    ):
        raise raised
    assert not list(tmp_path.iterdir())


def test_an_output_on_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_files, "replacing", lambda path: contextlib.nullcontext(Path("/dev/full")))
    with (
        pytest.raises(InputError, match=r"out\.json: cannot be written \(No space left on device\)$"),
        prediction_files.writing(tmp_path / "out.json", CLASS_NAMES) as write,
    ):
        write(predictor.Prediction("a.png", (), "why" * 10_000, "0" * 64))
