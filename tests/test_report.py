import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fer_jax import metrics, report

NAMES = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def history(epochs: int = 20) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    return [
        {"epoch": e, **{key: rng.random() for key in report.HISTORY_COLUMNS[1:]}} for e in range(epochs + 1)
    ]


def predictions(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 7, count), rng.dirichlet(np.ones(7), count)


def test_history_csv_gives_back_the_same_bits(tmp_path):
    rows = history()
    rows[3]["train_loss"] = np.float32(0.1)
    rows[4]["val_loss"] = 1e-17
    report.write_history_csv(tmp_path / "history.csv", rows)
    with open(tmp_path / "history.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in read] == list(range(21))
    for name in report.HISTORY_COLUMNS[1:]:
        assert [float(row[name]) for row in read] == [float(row[name]) for row in rows]


def test_history_csv_has_the_promised_columns(tmp_path):
    report.write_history_csv(tmp_path / "h.csv", history(0))
    text = (tmp_path / "h.csv").read_text()
    assert text.splitlines()[0] == "epoch,train_loss,train_accuracy,val_loss,val_accuracy,seconds"


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "history.csv"
    report.write_history_csv(path, history(2))
    before = path.read_bytes()
    broken = history(2)
    del broken[2]["val_loss"]
    with pytest.raises(KeyError, match="val_loss"):
        report.write_history_csv(path, broken)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_json_takes_numpy_and_has_no_nan(tmp_path):
    path = tmp_path / "results.json"
    value = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": [math.nan, np.float64("inf")],
        "d": (1, True, None),
        5: "é\udce9",
    }
    report.write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == {
        "a": 0.5, "b": [0, 1], "c": [None, None], "d": [1, True, None], "5": "é\udce9"
    }  # fmt: skip
    with pytest.raises(TypeError):
        report.write_json(path, {"a": object()})
    assert json.loads(path.read_text("utf-8"))["a"] == 0.5
    assert list(tmp_path.iterdir()) == [path]


def plot(kind: str, path) -> None:
    labels, chances = predictions()
    images = np.random.default_rng(2).integers(0, 256, (40, 48, 48), np.uint8)
    if kind == "history":
        report.plot_history([history()], "drawn faces · openface · scratch", path)
    elif kind == "confusion":
        matrix = metrics.classification(labels, chances.argmax(1), NAMES)["confusion"]
        report.plot_confusion(matrix, NAMES, "drawn faces · openface · scratch", path)
    else:
        some = report.choose_faces(labels, chances)
        report.plot_faces(images[some], labels[some], chances[some], NAMES, "drawn faces", path)


@pytest.mark.parametrize("kind", ["history", "confusion", "faces"])
def test_figures_are_whole_and_not_empty(kind, tmp_path):
    path = tmp_path / f"{kind}.png"
    plot(kind, path)
    with Image.open(path) as image:
        image.load()  # raises on a truncated file
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 400
    assert len(np.unique(pixels)) > 20
    # Nothing is cut off: the rim is white on every side.
    assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) == 255).all()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["history", "confusion", "faces"])
def test_a_failed_figure_leaves_nothing_behind(kind, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def half_written(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="no space"):
        plot(kind, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def figures(monkeypatch):
    """The figures that would have been saved."""
    kept = []
    monkeypatch.setattr(report, "_save", lambda figure, path: kept.append(figure))
    return kept


def test_history_figure_shows_every_epoch_of_both_splits(figures):
    rows = history()
    report.plot_history([rows], "FER2013 · mobilenet · pretrained", "unused.png")
    assert figures[0].get_suptitle() == "FER2013 · mobilenet · pretrained"
    for axes, metric in zip(figures[0].axes, ("accuracy", "loss"), strict=True):
        assert axes.get_ylabel() == metric
        train, val = axes.get_lines()
        assert train.get_xdata().tolist() == list(range(21))
        assert train.get_ydata().tolist() == [row[f"train_{metric}"] for row in rows]
        assert val.get_ydata().tolist() == [row[f"val_{metric}"] for row in rows]
        assert train.get_linestyle() != val.get_linestyle()
        assert train.get_marker() != val.get_marker()
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "validation"]


def test_confusion_figure_is_divided_by_row_and_names_the_support(figures):
    report.plot_confusion([[3, 1], [0, 0]], ["happy", "sad"], "drawn faces", "unused.png")
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.75", "0.25", "0.00", "0.00"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["happy (4)", "sad (0)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["happy", "sad"]


@pytest.mark.parametrize(
    "names",
    [
        ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"],
        ["surprised_and_happy_people", "not_surprised_nor_happy"],
        ["a", "b", "c"],
    ],
)
def test_confusion_figure_has_room_for_its_labels(names, tmp_path, recwarn):
    count = len(names)
    report.plot_confusion(np.full((count, count), 1000), names, "drawn faces", tmp_path / "confusion.png")
    assert not recwarn.list
    pixels = np.asarray(Image.open(tmp_path / "confusion.png").convert("L"))
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == 255).all() for edge in edges)


def test_faces_figure_marks_the_true_class_and_the_predicted_bar(figures):
    image = np.zeros((1, 48, 48), np.uint8)
    report.plot_faces(image, [0], np.array([[0.2, 0.8]]), ["happy", "sad"], "drawn faces", "unused.png")
    face, bars = figures[0].axes[:2]
    assert face.get_title() == "happy: wrong"
    assert [bar.get_width() for bar in bars.patches] == [0.2, 0.8]
    assert bars.patches[0].get_facecolor() != bars.patches[1].get_facecolor()
    true, other = bars.get_yticklabels()
    assert (true.get_text(), true.get_fontweight()) == ("true → happy", "bold")
    assert (other.get_text(), other.get_fontweight()) == ("sad", "normal")


def test_of_many_classes_the_most_probable_have_bars_and_the_true_one(figures):
    chances = np.linspace(0, 1, 50)[None] / 25
    names = [f"class {i}" for i in range(50)]
    report.plot_faces(np.zeros((1, 8, 8), np.uint8), [3], chances, names, "own data", "unused.png")
    bars = figures[0].axes[1]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["true → class 3", *names[40:]]
    assert len(bars.patches) == 11


def test_confusion_of_many_classes_is_a_page_without_numbers(tmp_path, figures, monkeypatch):
    names = [f"class {i}" for i in range(200)]
    report.plot_confusion(np.eye(200), names, "own data", "unused.png")
    assert not figures[0].axes[0].texts
    width, height = figures[0].get_size_inches()
    assert max(width, height) < 30


def test_faces_figure_shows_colour_images_in_colour(figures):
    image = np.random.default_rng(3).integers(0, 256, (1, 20, 20, 3), np.uint8)
    report.plot_faces(image, [0], np.array([[0.2, 0.8]]), ["a", "b"], "own data", "unused.png")
    np.testing.assert_array_equal(figures[0].axes[0].get_images()[0].get_array(), image[0])


def test_dollar_signs_in_names_are_no_formula(tmp_path, figures, monkeypatch):
    names, title = ["$5_to_$", "$a b$"], "own data cost_$100_vs_$200_$"
    report.plot_confusion([[3, 1], [0, 2]], names, title, "unused.png")
    report.plot_faces(np.zeros((1, 8, 8), np.uint8), [0], np.array([[0.2, 0.8]]), names, title, "unused.png")
    monkeypatch.undo()
    for figure in figures:
        report._save(figure, tmp_path / "figure.png")  # a formula of these cannot be read
    assert figures[0].get_suptitle().replace("\\$", "$") == title


def test_a_long_title_is_broken_into_lines(figures):
    report.plot_history([history(1)], "a word " * 40, "unused.png")
    assert max(map(len, figures[0].get_suptitle().split("\n"))) <= 90


def test_choose_faces_takes_the_most_confident_right_and_wrong_of_each_class():
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    chances = np.array(
        [
            [0.6, 0.3, 0.1],
            [0.9, 0.1, 0.0],  # 0: most confident right
            [0.1, 0.7, 0.2],
            [0.1, 0.1, 0.8],  # 0: most confident wrong
            [0.2, 0.5, 0.3],  # 1: right; the first of equals
            [0.3, 0.5, 0.2],
            [0.5, 0.4, 0.1],  # 2: wrong; none is right
        ]
    )
    assert report.choose_faces(labels, chances).tolist() == [1, 3, 4, 6]
    assert report.choose_faces(np.arange(100), np.eye(100)).tolist() == list(range(report.MOST_FACES))


def test_tables_are_aligned_and_hold_the_numbers():
    rows = history()
    lines = report.epoch_table(rows).splitlines()
    assert len(lines) == 22
    assert len(set(map(len, lines))) == 1
    assert lines[-1].split()[:2] == ["20", f"{rows[20]['train_loss']:.4f}"]

    labels, chances = predictions()
    result = metrics.classification(labels, chances.argmax(1), NAMES)
    lines = report.class_table(result).splitlines()
    assert len(lines) == 10
    assert len(set(map(len, lines))) == 1
    happy = result["per_class"]["happy"]
    ratios = [f"{happy[name]:.3f}" for name in ("precision", "recall", "f1")]
    assert lines[4].split() == ["happy", *ratios, str(happy["support"])]
    assert lines[8].split() == ["accuracy", f"{result['accuracy']:.3f}", "40"]
    assert lines[9].split() == ["macro", "F1", f"{result['macro_f1']:.3f}", "40"]


def test_class_table_says_when_one_class_is_predicted_for_everything():
    result = metrics.classification([0, 1], [1, 1], ["happy", "sad"])
    assert report.class_table(result).splitlines()[-1].startswith("degenerate")


def test_importing_the_metrics_and_reports_leaves_the_heavy_libraries_alone():
    code = """if True:
        import sys, fer_jax.metrics, fer_jax.report
        sys.exit("matplotlib" in sys.modules or "sklearn" in sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)
