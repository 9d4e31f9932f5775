import numpy as np
import pytest
from PIL import Image

from fer_jax import detection
from fer_jax.data import faces, photos
from fer_jax.errors import InputError

FACES = faces.draw(40)[0][:12]  # those from 1 on are detected


def scene(*placed, height=300, width=400):
    """A grey photograph with drawn faces at (x, y, side)."""
    photo = np.full((height, width), 110, np.uint8)
    for face, (x, y, side) in zip(FACES[1:], placed, strict=False):
        photo[y : y + side, x : x + side] = np.asarray(Image.fromarray(face).resize((side, side)))
    return photo


def overlap(face, x, y, side):
    """Intersection over union with a square."""
    width = min(face.x + face.w, x + side) - max(face.x, x)
    height = min(face.y + face.h, y + side) - max(face.y, y)
    shared = max(0, width) * max(0, height)
    return shared / (face.w * face.h + side * side - shared)


@pytest.fixture(scope="module")
def opencv():
    return detection.make("opencv")


def test_opencv_finds_faces_largest_first_each_once(opencv):
    places = [(20, 150, 70), (150, 30, 144)]
    for photo in (scene(*places), np.stack([scene(*places)] * 3, -1)):
        found = opencv(photo)
        assert len(found) == 2
        assert overlap(found[0], *places[1]) > 0.6
        assert overlap(found[1], *places[0]) > 0.6
        assert all(0 < face.confidence < 1 for face in found)


def test_opencv_finds_faces_in_huge_and_tiny_photographs_inside_them(opencv):
    huge = np.asarray(Image.fromarray(scene((150, 80, 144))).resize((4000, 3000)))
    assert overlap(opencv(huge)[0], 1500, 800, 1440) > 0.6
    tiny = opencv(FACES[1])
    assert len(tiny) == 1
    assert overlap(tiny[0], 0, 0, 48) > 0.6
    assert min(tiny[0][:4]) >= 0
    assert max(tiny[0].x + tiny[0].w, tiny[0].y + tiny[0].h) <= 48


@pytest.mark.parametrize("shape", [(1, 1), (2, 900), (300, 300), (5000, 3)])
def test_opencv_finds_nothing_in_a_photograph_of_nothing(opencv, shape):
    assert opencv(np.full(shape, 90, np.uint8)) == []


def test_opencv_finds_the_face_of_a_real_photograph(opencv, shared):
    photo = photos.decode(shared / "photos" / "grace_hopper.bmp", "photo")
    (face,) = opencv(photo.pixels)
    assert overlap(face, 160, 110, 220) > 0.7
    assert face.confidence > 0.8


def test_none_takes_the_whole_image():
    assert detection.make("none")(np.zeros((5, 9, 3), np.uint8)) == [(0, 0, 9, 5, 0.0)]


def test_boxes_of_the_same_face_are_merged_and_the_most_confident_stays():
    boxes = np.array([[10, 10, 40, 40], [20, 20, 20, 20], [200, 10, 30, 30], [90, 90, 0, 5]])
    pixels = np.zeros((100, 215), np.uint8)
    found = detection._in_photo(boxes, np.array([0.9, 0.4, 0.5, 0.9]), 1.0, pixels)
    assert found == [(10, 10, 40, 40, 0.9), (200, 10, 15, 30, 0.5)]
    found = detection._in_photo(boxes, np.array([0.4, 0.9, 0.5, 0.9]), 0.5, pixels)
    assert found == [(40, 40, 40, 40, 0.9)]  # the third is outside, at this scale


def test_a_crop_is_a_square_with_margin_whose_border_is_repeated():
    pixels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    face = detection.Detection(2, 3, 2, 4, 1.0)
    np.testing.assert_array_equal(detection.crop(pixels, face, 0), pixels[3:7, 1:5])
    np.testing.assert_array_equal(detection.crop(pixels, face, 0.25), pixels[2:8, 0:6])
    corner = detection.crop(pixels, detection.Detection(0, 0, 2, 2, 1.0), 0.5)
    np.testing.assert_array_equal(corner, pixels[[0, 0, 1, 2]][:, [0, 0, 1, 2]])
    colour = np.stack([pixels] * 3, -1)
    np.testing.assert_array_equal(detection.crop(colour, face, 0.25), colour[2:8, 0:6])


class FakeYuNet:
    """In place of OpenCV's, whose model is not part of the project: its calls and its rows."""

    def setInputSize(self, size):
        self.size = tuple(size)

    def detect(self, image):
        assert image.shape[2] == 3
        assert image.shape[1::-1] == getattr(self, "size", (320, 320))
        landmarks = [0.0] * 10
        rows = [[-4, 10, 30, 40, *landmarks, 0.7], [50, 20, 60, 80, *landmarks, 0.95]]
        return 1, np.array(rows, np.float32) if image.any() else None


def test_yunet_s_rows_become_detections_in_the_photograph(tmp_path, monkeypatch):
    model = tmp_path / "yunet.onnx"
    model.touch()
    monkeypatch.setattr(detection.cv2.FaceDetectorYN, "create", lambda *_: FakeYuNet())
    detect = detection.make(str(model))
    assert detect(np.zeros((100, 200), np.uint8)) == []
    large, small = detect(np.full((100, 200, 3), 9, np.uint8))
    assert large == (50, 20, 60, 80, pytest.approx(0.95))
    assert small == (0, 10, 26, 40, pytest.approx(0.7))
    large, _ = detect(np.full((100, 2560), 9, np.uint8))
    assert large[:2] == (100, 40)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mtcnn", "unknown 'mtcnn', expected opencv, none or a YuNet model"),
        ("absent.onnx", "no such file absent.onnx"),
        ("caf\udce9.onnx", "expected a path in UTF-8"),
    ],
)
def test_an_unknown_detector_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        detection.make(name)


def test_a_file_that_is_no_network_is_refused(tmp_path):
    model = tmp_path / "yunet.onnx"
    model.write_bytes(b"not a network")
    with pytest.raises(InputError, match="not a YuNet model that OpenCV runs"):
        detection.make(str(model))
