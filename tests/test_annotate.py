import numpy as np
import pytest

from fer_jax import annotate
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.data.photos import Photo
from fer_jax.predictor import Face

BLUE = (0x00, 0x72, 0xB2)


def face(x, y, w, h, happy=80.0):
    rest = (100 - happy) / 6
    emotion = {name: happy if name == "happy" else rest for name in CLASS_NAMES}
    return Face({"x": x, "y": y, "w": w, "h": h}, 0.9, emotion)


def draw(height, width, *faces, columns=None):
    photo = Photo(np.full((height, width), 128, np.uint8), width, height)
    return annotate.draw(photo, faces, CLASS_NAMES, columns)


def blue(image):
    return (image == BLUE).all(-1)


@pytest.mark.parametrize(
    ("height", "width"), [(40, 40), (600, 400), (3000, 4000), (1, 900), (900, 1), (10, 2000)]
)
def test_box_label_and_bars_are_there_at_any_size_and_inside(height, width):
    plain = draw(height, width)
    image = draw(height, width, face(0, 0, width, height))
    scale = max(plain.shape) / max(height, width)
    assert 640 <= max(plain.shape) <= 2048
    across = min(round(width * scale), plain.shape[1])
    strip = image[:, across:]
    assert strip.shape[1] > 50
    assert blue(strip).any()  # the bar
    assert (image[:, :across] != 128).any()  # box and label
    for edge in (strip[0], strip[-1], strip[:, -1]):
        assert (edge == 255).all()  # nothing is cut off


def test_the_box_is_where_the_face_is_also_in_a_photograph_that_was_shrunk():
    photo = Photo(np.full((500, 1000), 128, np.uint8), 4000, 2000)
    image = annotate.draw(photo, [face(1000, 400, 800, 800)], CLASS_NAMES)[:, :1000]
    rows, columns = np.nonzero(blue(image))
    assert (columns.min(), columns.max()) == pytest.approx((250, 449), abs=12)
    assert (rows.min(), rows.max()) == pytest.approx((100, 299), abs=12)


def test_the_bar_is_as_long_as_the_percentage():
    lengths = [blue(draw(640, 640, face(0, 0, 9, 9, happy=p))[:, 640:]).any(0).sum() for p in (40.0, 80.0)]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=4)


def test_many_faces_get_a_table_each_and_frames_keep_their_size():
    faces = [face(60 * i, 0, 50, 50) for i in range(9)]
    tables = draw(300, 640, *faces)[:, 640:]
    starts = np.diff(np.pad(blue(tables).any(0).astype(int), 1)).clip(0).sum()  # columns with bars
    bars = sum(
        np.diff(np.pad(blue(part).any(1).astype(int), 1)).clip(0).sum()
        for part in np.array_split(tables, starts, 1)
    )
    assert bars == 9
    assert {draw(300, 640, *faces[:n], columns=1).shape for n in (0, 1, 9)} == {
        draw(300, 640, faces[0]).shape
    }


@pytest.mark.parametrize(("height", "width"), [(300, 2048), (2048, 30)])
def test_a_crowd_makes_no_more_tables_than_a_jpeg_can_hold_and_is_counted(height, width, monkeypatch):
    written, text = [], annotate.ImageDraw.ImageDraw.text

    def noting(self, at, words, *rest, **options):
        written.append(words)
        text(self, at, words, *rest, **options)

    monkeypatch.setattr(annotate.ImageDraw.ImageDraw, "text", noting)
    image = draw(height, width, *(face(i % 30, i % 300, 20, 20) for i in range(300)))
    assert image.shape[1] <= 5 * 2048
    tables = sum(words.startswith("face ") for words in written)
    assert tables > 5
    assert f"{300 - tables} more" in written


def test_a_table_of_many_labels_has_the_most_probable_and_is_no_higher(monkeypatch):
    written, text = [], annotate.ImageDraw.ImageDraw.text

    def noting(self, at, words, *rest, **options):
        written.append(words)
        text(self, at, words, *rest, **options)

    monkeypatch.setattr(annotate.ImageDraw.ImageDraw, "text", noting)
    labels = [f"class {i}" for i in range(200)]
    percent = {name: i / 199 for i, name in enumerate(labels)}
    many = Face({"x": 1, "y": 1, "w": 20, "h": 20}, 1.0, percent)
    photo = Photo(np.zeros((480, 640), np.uint8), 640, 480)
    image = annotate.draw(photo, [many], labels, columns=1)
    assert [words for words in written if words.startswith("class ")] == labels[-40:]
    assert image.shape[0] < 1000


def test_class_names_outside_latin_are_no_boxes():
    pen = annotate._Pen(["злость"], 40)
    glyphs = [bytes(pen._font.getmask(letter)) for letter in "злотьφ\uffff"]
    assert len(set(glyphs)) == len(glyphs)


def test_what_tells_the_dominant_bar_from_the_others_is_seen_in_grey():
    def luma(colour):
        return np.dot([int(colour[i : i + 2], 16) for i in (1, 3, 5)], [0.299, 0.587, 0.114])

    assert abs(luma(annotate.BLUE) - luma(annotate.LIGHT_GREY)) > 80
