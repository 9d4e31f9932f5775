"""Files of predictions: .json in the shape of deepface's `analyze`, .jsonl and .csv with a row a face."""

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from fer_jax.errors import InputError
from fer_jax.files import replacing, writing_to
from fer_jax.predictor import Prediction

Write = Callable[[Prediction], None]

BEFORE = ("file", "seconds", "x", "y", "w", "h", "face_confidence", "dominant_emotion")
AFTER = ("model_sha256", "error")
"""A csv's columns before and after the percentages.

These are named by the labels, or, where one of them is called like a column here, all emotion_LABEL.
"""


@contextlib.contextmanager
def writing(path: Path, labels: Sequence[str]) -> Iterator[Write]:
    """Writes one prediction after the other; the file is there at the end, whole, or not at all.

    In .json the whole is a list, with a list an image or frame, with a dict a face: `Prediction.as_deepface`.
    In .jsonl each of these dicts is a line. In .csv it is a row, with what is not known left empty. Bytes of
    a file's name that are not UTF-8 are escaped as in JSON, the way Python has them in a str: E9 is \\udce9.

    Args:
      labels: of the model.

    Raises:
      InputError: the file cannot be written, or its name ends otherwise. An `OSError` that the caller raises
        stays what it is.
    """
    form = FORMS[check(path).suffix.lower()]
    callers = None
    try:
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
            form(file, labels) as write,
        ):

            def told(prediction: Prediction) -> None:
                with writing_to(path):
                    write(prediction)

            try:
                yield told
            except OSError as error:
                callers = error
                raise
    except OSError as error:
        if error is callers:
            raise
        with writing_to(path):
            raise


def check(path: Path) -> Path:
    """The path itself; InputError where its name or its directory is none that `writing` can use."""
    if path.suffix.lower() not in FORMS:
        raise InputError(f"{path}: expected a name that ends with {', '.join(FORMS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: expected a file in a directory that exists")
    return path


@contextlib.contextmanager
def _json(file: IO[str], labels: Sequence[str]) -> Iterator[Write]:
    before = "[\n"

    def write(prediction: Prediction) -> None:
        nonlocal before
        file.write(before + json.dumps(prediction.as_deepface(), ensure_ascii=False))
        before = ",\n"

    yield write
    file.write("[]\n" if before == "[\n" else "\n]\n")


@contextlib.contextmanager
def _jsonl(file: IO[str], labels: Sequence[str]) -> Iterator[Write]:
    def write(prediction: Prediction) -> None:
        for face in prediction.as_deepface():
            file.write(json.dumps(face, ensure_ascii=False) + "\n")

    yield write


@contextlib.contextmanager
def _csv(file: IO[str], labels: Sequence[str]) -> Iterator[Write]:
    prefix = "emotion_" if {*labels} & {*BEFORE, *AFTER} else ""
    columns = (*BEFORE, *(prefix + label for label in labels), *AFTER)
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()

    def write(prediction: Prediction) -> None:
        for face in prediction.as_deepface():
            row: dict[str, Any] = {name: value for name, value in face.items() if name in (*BEFORE, *AFTER)}
            percent = {prefix + label: value for label, value in face["emotion"].items()}
            writer.writerow(row | (face["region"] or {}) | percent)

    yield write


FORMS = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}
"""By the end of the file's name."""
