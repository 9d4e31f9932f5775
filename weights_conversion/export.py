"""Exports a trained model to Keras, safetensors, ONNX or StableHLO:

    python -m weights_conversion.export --model=runs/openface --format=onnx --output=openface.onnx

The file takes float32 images [N, size, size, 3], RGB of 0..255, and gives probabilities [N, classes]. What
was written is read back by the format's own runtime; the file is left only if that predicts the same.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fer_jax import process
from fer_jax.arguments import Parser
from fer_jax.errors import InputError, exit_on_input_error

# The packages that each needs beyond fer_jax's own.
FORMATS: dict[str, tuple[str, ...]] = {
    "keras": ("keras",),
    "safetensors": (),
    "onnx": ("jax2onnx", "onnx", "onnxruntime"),
    "stablehlo": (),
}
HOLD_METADATA = ("safetensors", "onnx")  # the others get them in a file beside
# Of a probability. Models measured here stay within 1e-5; two runtimes may be further apart where a model is
# very sure of itself; a fault shows in the first digits.
TOLERANCE = 1e-4
FACES = 16  # drawn ones that what was written is tried on


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: the files, their bytes, the largest difference of a probability, the licence."""

    files: tuple[Path, ...]
    bytes: int
    difference: float
    licence: str


def export(model: str | Path, form: str, output: str | Path, *, overwrite: bool = False) -> Exported:
    """Writes a trained model in another format.

    Args:
      model: the directory of a run, or its model.safetensors.
      form: one of `FORMATS`.
      output: file to write; of formats with no place for metadata they are put beside it, in OUTPUT.json.
      overwrite: replace what is there.

    Raises:
      InputError: no such model, a package is missing, `output` may not be written, or what was written does
        not predict the same.
    """
    output = Path(output)
    _check_output(form, output, overwrite)
    for package in FORMATS[form]:
        if not importlib.util.find_spec(package):
            command = f"{sys.executable} -m pip install -e '.[export]'"
            raise InputError(f"--format={form}: {package} is not installed, try: {command}")
    from fer_jax import saved_model
    from weights_conversion import formats

    saved = saved_model.load(model)
    metadata = formats.describe(saved)
    file_format = importlib.import_module(f"weights_conversion.formats.{form}_file")
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as directory:
            written = Path(directory) / output.name
            file_format.write(saved, metadata, written)
            difference = _largest_difference(saved, file_format.predict, written)
            if not difference <= TOLERANCE:  # NaN too
                raise InputError(
                    f"{output}: not written, since it would predict otherwise: probabilities differ by "
                    f"{difference:.2g}, expected at most {TOLERANCE:g}"
                )
            if form not in HOLD_METADATA:
                _beside(written).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
            names = sorted(file.name for file in Path(directory).iterdir())
            for name in names:
                os.replace(Path(directory) / name, output.parent / name)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error})") from error
    files = tuple(output.parent / name for name in names)
    size = sum(file.stat().st_size for file in files)
    return Exported(files, size, difference, metadata["licence"])


def _check_output(form: str, output: Path, overwrite: bool) -> None:
    if not output.name:
        raise InputError(f"--output: {output}, expected the name of a file")
    if form == "keras" and output.suffix != ".keras":
        raise InputError(f"--output: {output}, expected a name in .keras, since Keras loads no other")
    if not output.parent.is_dir():
        raise InputError(f"--output: {output.parent} is no directory")
    for path in (output,) if form in HOLD_METADATA else (output, _beside(output)):
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f"--output: {path} exists already, expected a new file or --overwrite")


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def _largest_difference(saved: Any, predict: Callable[..., Any], file: Path) -> float:
    """Of any probability of a drawn face, between fer_jax and the file."""
    import jax
    import numpy as np

    from fer_jax.data import faces, preprocessing

    drawn, _ = faces.draw(FACES)
    images = preprocessing.to_images(jax.numpy.asarray(drawn), saved.spec.image_size)
    expected = jax.jit(saved.spec.predictor())(saved.variables, images)
    return float(np.abs(predict(file, np.asarray(images)) - expected).max())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m weights_conversion.export`."""
    parser = Parser(
        "python -m weights_conversion.export",
        description="Exports a trained model of fer-jax: float32 images [N, size, size, 3], RGB of 0..255, "
        "to probabilities [N, classes].",
    )
    add: Callable[..., Any] = parser.add_argument
    add("--model", required=True, metavar="DIR", help="directory of a run, or its model.safetensors")
    add("--format", required=True, choices=FORMATS)
    add("--output", required=True, metavar="FILE", help="file to write")
    add("--overwrite", action="store_true", help="replace FILE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: exports, and prints what was written."""
    with exit_on_input_error():
        args = parse_arguments(arguments)
        process.print_any_name()
        done = export(args.model, args.format, args.output, overwrite=args.overwrite)
        files = " and ".join(map(str, done.files))
        print(
            f"{files}: {done.bytes:,} bytes; probabilities of {FACES} drawn faces differ by at most "
            f"{done.difference:.1e}; licence: {done.licence}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
