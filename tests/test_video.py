import contextlib
import resource
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_jax import video
from fer_jax.errors import InputError


@pytest.fixture
def clip(tmp_path):
    """60 frames at 25 a second; the grey of frame i is 4 * i."""
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for index in range(60):
        writer.write(np.full((48, 64, 3), 4 * index, np.uint8))
    writer.release()
    return path


def indices(frames):
    return [round(frame.pixels.mean() / 4) for frame in frames]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (2, [0, 13, 25, 38, 50]),
        (10, [0, 3, 5, 8, 10, 13]),
        (25, [0, 1, 2, 3, 4, 5]),
        (100, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_frames_are_sampled_and_know_their_time(clip, fps, expected):
    found = list(video.frames(clip, fps))
    assert indices(found)[: len(expected)] == expected
    assert [frame.seconds for frame in found][: len(expected)] == pytest.approx([i / 25 for i in expected])
    assert abs(video.count(clip, fps) - len(found)) <= 1


def test_frames_are_rgb(tmp_path):
    with video.Writer(tmp_path / "red.mp4", 5) as writer:
        writer.write(np.full((48, 64, 3), (250, 20, 20), np.uint8))
    (frame,) = video.frames(str(tmp_path / "red.mp4"), 5)
    assert frame.pixels.shape == (48, 64, 3)
    assert np.abs(frame.pixels.mean((0, 1)) - (250, 20, 20)).max() < 12


def test_frames_of_joined_files_are_all_there_one_after_the_other(tmp_path):
    joined = tmp_path / "joined.mpg"
    with joined.open("wb") as whole:
        for name, greys in (("one", range(20, 40)), ("two", range(40, 60))):
            path = tmp_path / f"{name}.mpg"
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"PIM1"), 25, (64, 48))
            for grey in greys:
                writer.write(np.full((48, 64, 3), 4 * grey, np.uint8))
            writer.release()
            whole.write(path.read_bytes())
    found = list(video.frames(str(joined), 5))
    seconds = [frame.seconds for frame in found]
    assert seconds == sorted(seconds)
    assert max(indices(found)) > 54
    assert len(found) >= 7
    assert seconds[-1] > 1.2


def test_a_colon_in_a_name_is_no_protocol(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(clip).rename(tmp_path / "2024-01-01T12:30.avi")
    assert len(list(video.frames("2024-01-01T12:30.avi", 25))) == 60
    with video.Writer(Path("2024-01-01T12:31.mp4"), 5) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert (tmp_path / "2024-01-01T12:31.mp4").exists()


@pytest.mark.parametrize("fps", [66.6667, 119.883, 777.77, 1000])
def test_any_rate_can_be_written(fps, tmp_path):
    with video.Writer(tmp_path / "out.mp4", fps) as writer:
        for _ in range(3):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    assert video.rate(str(tmp_path / "out.mp4"), 2000) == pytest.approx(fps, abs=0.5)


def test_a_written_video_has_the_rate_and_the_even_size_of_its_first_frame(tmp_path):
    path = tmp_path / "out.mp4"
    with video.Writer(path, 2) as writer:
        for size in ((49, 65), (49, 65), (20, 30)):
            writer.write(np.zeros((*size, 3), np.uint8))
        assert not path.exists()
    found = list(video.frames(str(path), 30))
    assert [frame.seconds for frame in found] == pytest.approx([0, 0.5, 1])
    assert found[0].pixels.shape == (48, 64, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_a_video_is_not_there_where_writing_failed_or_nothing_was_written(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), video.Writer(tmp_path / "out.mp4", 2) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
        raise KeyboardInterrupt
    with video.Writer(tmp_path / "out.mp4", 2):
        pass
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(InputError, match="cannot be written"),
        video.Writer(tmp_path / "no" / "out.mp4", 2) as writer,
    ):
        writer.write(np.zeros((48, 64, 3), np.uint8))


def test_a_video_that_the_disk_has_no_room_for_is_told_and_not_left(tmp_path):
    def write():
        with video.Writer(tmp_path / "out.mp4", 2) as writer:
            for shade in range(200):
                noise = np.random.default_rng(shade).integers(0, 256, (64, 64, 3), np.uint8)
                writer.write(noise)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a full disk: writes fail
    try:
        with pytest.raises(InputError, match=r"out\.mp4: cannot be written whole; is the disk full\?"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    write()
    assert len(list(video.frames(str(tmp_path / "out.mp4"), 2))) == 200


def test_what_is_no_whole_video_is_told(clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    for content in (b"", b"not a video", Path(clip).read_bytes()[:1000]):
        broken.write_bytes(content)
        with pytest.raises(InputError, match=r"broken\.mp4: unreadable video"):
            list(video.frames(str(broken), 2))
    with pytest.raises(InputError, match="no such file"):
        list(video.frames(str(tmp_path / "none.mp4"), 2))


def noise(path, codec):
    """60 frames at 25 a second that no codec makes small."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(60):
        writer.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()


def put_index_in_front(path):
    """As qt-faststart does: the box moov before mdat, its chunks' offsets moved by its size."""
    data = path.read_bytes()
    at = data.index(b"moov") - 4
    moov = bytearray(data[at:])
    stco = moov.index(b"stco") + 8
    count = int.from_bytes(moov[stco : stco + 4])
    offsets = np.frombuffer(moov, ">u4", count, stco + 4)
    offsets += len(moov)
    mdat = data.index(b"mdat") - 4
    path.write_bytes(data[:mdat] + moov + data[mdat:at])


def trim(path):
    """As ffmpeg -ss -c copy does: an edit list that starts at the half, with all frames still there."""
    data = bytearray(path.read_bytes())
    elst = data.index(b"elst") + 12
    duration, start = data[elst : elst + 4], data.index(b"mdhd") + 20
    data[elst : elst + 4] = (int.from_bytes(duration) // 2).to_bytes(4)
    data[elst + 4 : elst + 8] = (int.from_bytes(data[start : start + 4]) // 2).to_bytes(4)
    path.write_bytes(data)


@pytest.mark.parametrize(("name", "codec"), [("clip.avi", "MJPG"), ("clip.mp4", "mp4v")])
def test_a_video_that_breaks_off_gives_the_frames_it_has_and_is_told(tmp_path, name, codec):
    path = tmp_path / name
    noise(path, codec)
    if name == "clip.mp4":
        put_index_in_front(path)
    assert len(list(video.frames(str(path), 25))) == 60
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = []
    with pytest.raises(InputError, match=rf"{name}: breaks off after \d+ of 60 frames"):
        found.extend(video.frames(str(path), 25))
    assert 10 < len(found) < 40


def test_a_video_trimmed_by_an_edit_list_is_whole(tmp_path):
    path = tmp_path / "clip.mp4"
    noise(path, "mp4v")
    trim(path)
    assert 20 < len(list(video.frames(str(path), 25))) < 40
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 60  # what it tells of


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\0\0\0\x08free" + b"\0\0\0\x09mdat", True),
        (b"\0\0\0\x08free" + b"\0\0\0\x09mdat.", False),
        (b"\0\0\0\x01mdat" + b"\0\0\0\0\0\0\0\x12.", True),
        (b"\0\0\0\x01mdat" + b"\0\0\0\0\0\0\0\x11.", False),
        (b"\0\0\0\0mdat...", False),  # to the end
        (b"\0\0\0\x08mdat" + b"what a camera adds", False),
        (b"RIFF\x08\0\0\0AVI ...." + b"RIFF\x11\0\0\0AVIX....", True),
        (b"RIFF\x08\0\0\0AVI ...." + b"RIFF\x08\0\0\0AVIX....", False),
        (b"RIFF\x10\0\0\0AVI ....", False),  # the head counted
        (b"RIFF\0\0\0\0AVI ....", False),  # written to a pipe
        (b"RIFF\xff\xff\xff\xffAVI ....", False),
        (b"\x1a\x45\xdf\xa3\x93mdat", False),
    ],
)
def test_a_file_is_cut_off_where_its_own_sizes_say_so(tmp_path, content, expected):
    (tmp_path / "clip").write_bytes(content)
    assert video._cut_off(str(tmp_path / "clip")) == expected


def test_ctrl_c_ends_a_webcam_and_works_as_before_afterwards(clip, monkeypatch):
    opened = video.cv2.VideoCapture
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda index: opened(clip, cv2.CAP_FFMPEG))
    before = signal.getsignal(signal.SIGINT)
    found = []
    for frame in video.webcam(0, 1e6):
        found.append(frame)
        if len(found) == 3:
            signal.raise_signal(signal.SIGINT)
    assert indices(found) == [0, 1, 2]
    assert found[0].seconds <= found[1].seconds <= found[2].seconds < 60
    assert signal.getsignal(signal.SIGINT) is before


def test_a_webcam_that_is_not_there_is_told():
    with pytest.raises(InputError, match="webcam 99: gives no frames"):
        list(video.webcam(99, 2))
