"""Cuts the faces out of photographs, for training on them.

    python -m fer_jax.crop photos --output=faces

The folders below PHOTOS, such as photos/happy, are kept: faces/happy. A face is found and cut out just as
`fer_jax.predict` does it. Photographs without a face are named and left out; the exit status is then 1. The
folder is there whole or, as after Ctrl-C, not at all.
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from fer_jax.arguments import Parser
from fer_jax.errors import InputError, exit_on_input_error
from fer_jax.files import LONGEST, locked, shortened, writing_to


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked.

    Raises:
      InputError: a missing or unknown one, a number out of range, or an --output that exists.
    """
    parser = Parser("python -m fer_jax.crop", description=__doc__)
    add = parser.add_argument
    add("photos", type=Path, metavar="PHOTOS", help="folder of photographs, or of folders of them")
    add("--output", required=True, type=Path, metavar="DIR", help="to be made, for the faces as png")
    add("--detector", default="opencv", metavar="NAME", help="opencv (default), or a YuNet .onnx")
    add("--margin", type=float, default=0.0, help="around a face, as a fraction of its box (default: 0)")
    add("--all", action="store_true", help="every face of a photograph (default: the largest)")
    add("--debug", action="store_true", help="show the traceback of an error in the input")
    arguments = parser.parse_args(argv)
    if not arguments.photos.is_dir():
        raise InputError(f"{arguments.photos}: no such folder")
    if os.path.lexists(arguments.output):
        raise InputError(f"--output: {arguments.output} exists, expected a new directory")
    if arguments.detector == "none":
        raise InputError("--detector: none finds no faces, expected opencv or a YuNet .onnx")
    from fer_jax import detection  # not for --help

    detection.check_margin(arguments.margin, "--margin")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Cuts out what the arguments say; 1 where a photograph has no face or cannot be read."""
    with exit_on_input_error("--debug" in (sys.argv if argv is None else argv)):
        arguments = parse(argv)
        with _unfinished(arguments.output) as unfinished:
            faces, without = _run(arguments, unfinished)
            if faces:
                unfinished.rename(arguments.output)
        if not faces:
            raise InputError(f"{arguments.photos}: no face found in {without} photographs")
    print(f"{faces} faces in {arguments.output}, {without} photographs without one", file=sys.stderr)
    return int(without > 0)


@contextlib.contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """A folder beside `output` for what is to become it, of this command alone; it is gone at the end.

    Raises:
      InputError: another command is at work on `output`, or nothing can be written there.
    """
    home = output.with_name(f".{output.name}.unfinished")
    with writing_to(output):
        home.mkdir(parents=True, exist_ok=True)
        with locked(home / ".lock", busy=f"--output: another process is making {output}"):
            try:
                faces = home / "faces"
                shutil.rmtree(faces, ignore_errors=True)  # of a command that was killed
                yield faces
            finally:
                shutil.rmtree(home, ignore_errors=True)


def _run(arguments: argparse.Namespace, output: Path) -> tuple[int, int]:
    """Writes the faces below `output`; how many there were, and how many photographs without one."""
    from PIL import Image

    from fer_jax import detection, inputs
    from fer_jax.data import photos

    detect = detection.make(arguments.detector)
    sources = [source for source in inputs.sources([str(arguments.photos)]) if not source.moves]
    if [source.name for source in sources] == [str(arguments.photos)]:  # it stands for what it has not
        raise InputError(f"{arguments.photos}: {sources[0].error}")
    faces = without = 0
    # From the start: a warning would draw a bar that is to come later, and its end would leave it there.
    for source in (bar := tqdm(sources, unit="img", leave=False)):
        try:
            if source.error:
                raise InputError(f"{source.name}: {source.error}")
            photo = photos.decode(source.name, source.name)
            found = detect(photo.pixels)
            if not found:
                raise InputError(f"{source.name}: no face found")
        except InputError as error:
            bar.write(f"warning: {error}", file=sys.stderr)
            without += 1
            continue
        place = _new(output / source.place)
        place.parent.mkdir(parents=True, exist_ok=True)
        for number, face in enumerate(found if arguments.all else found[:1], start=1):
            target = place.with_name(f"{place.name}.{number}.png")
            Image.fromarray(detection.crop(photo.pixels, face, arguments.margin)).save(target)
            faces += 1
    return faces, without


def _new(place: Path) -> Path:
    """What the files of a photograph's faces begin with: its name, of which another's may have the front."""
    name, copy = shortened(place.name, LONGEST), 1
    new = place.with_name(name)
    while new.with_name(f"{new.name}.1.png").exists():
        copy += 1
        new = place.with_name(f"{name}_{copy}")
    return new


if __name__ == "__main__":
    sys.exit(main())
