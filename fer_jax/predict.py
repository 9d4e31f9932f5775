"""Predicts the emotions of the faces in photographs and videos.

    python -m fer_jax.predict --model=runs/openface photo.jpg folder/ clip.mp4 --output=out.json

Prints a line a face. What has no face or cannot be read is a row with its reason, and a warning; the exit
status is then 1. A number that is no path is a webcam's, which Ctrl-C ends.
"""

import argparse
import contextlib
import gc
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from fer_jax import process
from fer_jax.arguments import Parser
from fer_jax.errors import InputError, exit_on_input_error

if TYPE_CHECKING:
    from fer_jax.data import photos
    from fer_jax.inputs import Source
    from fer_jax.predictor import Prediction, Predictor

_SHOWN = 2  # emotions a line


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, numbers checked.

    Raises:
      InputError: a missing or unknown one, or a number out of range.
    """
    parser = Parser("python -m fer_jax.predict", description=__doc__)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="photograph, folder, video, or number of a webcam")
    add("--model", required=True, metavar="DIR", help="of a run, or its model.safetensors")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="to write, or replace: .json (as deepface's analyze), .jsonl or .csv; not after Ctrl-C",
    )
    add(
        "--annotate",
        type=Path,
        metavar="DIR",
        help="gets every photograph with a face, and video, with what was found",
    )
    add("--detector", default="opencv", metavar="NAME", help="opencv (default), none, or a YuNet .onnx")
    add("--margin", type=float, default=0.0, help="around a face, as a fraction of its box (default: 0)")
    add("--min_confidence", type=float, default=0.0, help="of a face, 0 to 1 (default: 0)")
    add("--fps", type=float, default=2.0, help="frames a second of a video, 0.01 to 1000 (default: 2)")
    add("--batch_size", type=int, default=32, help="faces at once, at most (default: 32)")
    add("--debug", action="store_true", help="show the traceback of an error in the input")
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.inputs:
        raise InputError("expected at least one photograph, folder, video or webcam")
    if not 0.01 <= arguments.fps <= 1000:  # what annotated videos can have, too
        raise InputError(f"--fps: expected 0.01 to 1000, got {arguments.fps}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts what the arguments say.

    Returns:
      The exit status: 1 where anything has a reason in place of a face, 130 on Ctrl-C.
    """
    with exit_on_input_error("--debug" in (sys.argv if argv is None else argv)):
        arguments = parse(argv)
        from fer_jax import inputs, load, prediction_files, predictor  # after --help, which is to be quick

        predictor.check_options(arguments.margin, arguments.min_confidence, arguments.batch_size)
        if arguments.output:
            prediction_files.check(arguments.output)
        sources = inputs.sources(arguments.inputs, arguments.annotate)
        model = load(arguments.model)
        gc.freeze()  # else what was imported is looked through at the end, for half a second
        model.detector(arguments.detector)
        print(f"model: {model.spec.provenance.get('title', model.spec.backbone)}", file=sys.stderr)
        process.print_any_name()
        try:
            counts = _run(arguments, sources, model)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    print(", ".join(f"{count} {what}" for what, count in counts.items()), file=sys.stderr)
    return int(counts["without a face"] + counts["not read"] > 0)


def _run(arguments: argparse.Namespace, sources: Sequence["Source"], model: "Predictor") -> Counter[str]:
    """Prints and writes everything; how many pictures, faces and reasons there were."""
    from fer_jax import annotated_files, prediction_files
    from fer_jax.predictor import NO_FACE

    counts = Counter({"images or frames": 0, "faces": 0, "without a face": 0})
    with contextlib.ExitStack() as stack:
        sinks: list[Callable[[Source, Prediction], None]] = []
        if arguments.output:
            write = stack.enter_context(prediction_files.writing(arguments.output, model.spec.class_names))
            sinks.append(lambda _, prediction: write(prediction))
        if arguments.annotate:
            taken = [source.name for source in sources]
            files = annotated_files.AnnotatedFiles(
                arguments.annotate, model.spec.class_names, arguments.fps, taken
            )
            sinks.append(stack.enter_context(files).add)
        for source, prediction in _predictions(arguments, sources, model):
            _tell(prediction)
            counts["images or frames"] += 1
            counts["faces"] += len(prediction.faces)
            if not prediction.faces:
                counts["without a face" if prediction.error == NO_FACE else "not read"] += 1
            for sink in sinks:
                sink(source, prediction)
    return counts


def _predictions(
    arguments: argparse.Namespace, sources: Sequence["Source"], model: "Predictor"
) -> "Iterator[tuple[Source, Prediction]]":
    """What came of every photograph and frame, in order, with a progress bar where it takes long."""
    origins = deque["Source"]()

    def pictures() -> "Iterator[photos.Picture]":
        for source in sources:
            for picture in source.pictures(arguments.fps):
                origins.append(source)
                yield picture

    live = any(source.webcam is not None for source in sources)
    total = None if live else sum(source.expected(arguments.fps) for source in sources)
    found = model.stream(
        tqdm(pictures(), total=total, unit="img", delay=2, leave=False),
        detector=arguments.detector,
        margin=arguments.margin,
        min_confidence=arguments.min_confidence,
        batch_size=1 if live else arguments.batch_size,
        keep_photos=arguments.annotate is not None,
    )
    for prediction in found:
        yield origins.popleft(), prediction


def _tell(prediction: "Prediction") -> None:
    """A line a face on stdout, a warning where there is none."""
    where = prediction.name + ("" if prediction.seconds is None else f"  {prediction.seconds:.2f} s")
    if not prediction.faces:
        tqdm.write(f"warning: {where}: {prediction.error}", file=sys.stderr)
    for number, face in enumerate(prediction.faces, start=1):
        x, y, w, h = face.region.values()
        highest = sorted(face.emotion.items(), key=lambda item: -item[1])[:_SHOWN]
        emotions = "  ".join(f"{name} {percent:.1f} %" for name, percent in highest)
        line = f"{where}  face {number} at {x},{y} {w}x{h} ({face.confidence:.2f})  {emotions}"
        tqdm.write(line, file=sys.stdout)


if __name__ == "__main__":
    process.restart_with_huge_pages("fer_jax.predict")
    sys.exit(main())
