"""Converted weights on disk: a directory with weights.safetensors and weights.json.

`weights.safetensors` holds float32 arrays under "params/<layer>/<tensor>" and
"batch_stats/<layer>/<tensor>"; `weights.json` says where they come from, and the sha256 of the former.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fer_jax.errors import InputError
from fer_jax.files import digest, write_tensors

WEIGHTS_FILE = "weights.safetensors"
METADATA_FILE = "weights.json"
FORMAT_VERSION = 1

# Fields of weights.json, and the type of each.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "backbone": str,
    "alpha": (int, float),
    "include_top": bool,
    "source_file": str,
    "source_sha256": str,
    "keras_version": str,
    "converted_at": str,
    "licence": str,
    "initialised": list,
    "layers": int,
    "tensors": int,
    "parameters": int,
    "weights_sha256": str,
}

Variables = dict[str, dict[str, dict[str, np.ndarray]]]


def directory_name(backbone: str, alpha: float) -> str:
    """Name of the directory of a backbone's weights in weights/: openface, mobilenet_0.75, ..."""
    return f"{backbone}_{width(alpha)}" if backbone == "mobilenet" else backbone


def download_command(backbone: str, alpha: float, directory: str | Path) -> str:
    """The command that puts the published weights of a backbone into `directory`."""
    option = f"--alpha={width(alpha)} " if backbone == "mobilenet" else ""
    return (
        f"python -m weights_conversion.convert --backbone={backbone} {option}--download --output={directory}"
    )


def load(directory: str | Path) -> Variables:
    """Loads converted weights, after checking their sha256.

    Args:
      directory: what `python -m weights_conversion.convert --output` wrote.

    Returns:
      {"params": {layer: {tensor: array}}, "batch_stats": ...}, float32, ready for `module.apply`;
      "batch_stats" only where the backbone has batch normalisation.

    Raises:
      InputError: a file is missing, or is not the one that was written.
    """
    metadata = load_metadata(directory)
    path = Path(directory) / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected converted weights; convert again")
    try:
        found = digest(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if found != metadata["weights_sha256"]:
        raise InputError(f"{path}: sha256 is {found}, expected {metadata['weights_sha256']}; convert again")
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error
    variables: Variables = {}
    for name, array in arrays.items():
        collection, layer, tensor = name.split("/")
        variables.setdefault(collection, {}).setdefault(layer, {})[tensor] = array
    return variables


def load_metadata(directory: str | Path) -> dict[str, Any]:
    """Reads weights.json: backbone, alpha, source file and its sha256, licence, ... (see `FIELDS`).

    Raises:
      InputError: it is missing, of another version, or not as it was written.
    """
    path = Path(directory) / METADATA_FILE
    if not path.is_file():
        raise InputError(
            f"{directory}: no converted weights here (no {METADATA_FILE}), "
            "expected a directory written by python -m weights_conversion.convert"
        )
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not JSON, or cannot be read ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path}: expected format_version {FORMAT_VERSION}; convert again")
    for field, kind in FIELDS.items():
        if not isinstance(metadata.get(field), kind):
            raise InputError(f"{path}: field {field} is missing or of the wrong type; convert again")
    return metadata


def check_fits(
    metadata: dict[str, Any], backbone: str, alpha: float = 1.0, include_top: bool = False
) -> None:
    """Refuses weights of another backbone than the one asked for.

    Args:
      metadata: of the weights, from `load_metadata`.
      backbone: one of `fer_jax.models.BACKBONES`.
      alpha: MobileNet's width multiplier; 1.0 for the others.
      include_top: whether the classifier layers are wanted.

    Raises:
      InputError: backbone, alpha or classifier differ.
    """
    wanted = title(backbone, alpha, include_top)
    got = title(metadata["backbone"], metadata["alpha"], metadata["include_top"])
    if wanted != got:
        raise InputError(f"weights converted from {metadata['source_file']} are of {got}, expected {wanted}")


def describe(metadata: dict[str, Any]) -> str:
    """One line that says which weights these are, for logs, results and figures.

    "mobilenet alpha 0.25 from FILE (sha256 0123456789ab)", and what was initialised in place of read.
    """
    line = title(metadata["backbone"], metadata["alpha"], metadata["include_top"])
    line += f" from {metadata['source_file']} (sha256 {metadata['source_sha256'][:12]})"
    initialised = metadata["initialised"]
    if initialised:
        names = " and ".join(entry["tensor"] for entry in initialised)
        line += f", {names} NOT from the file but initialised with seed {initialised[0]['seed']}"
    return line


def save(directory: str | Path, variables: Variables, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes converted weights; the directory is there whole or not at all.

    Converted weights that are there already are replaced; `check_output` says whether they may be.

    Args:
      directory: to be written.
      variables: float32 arrays, as `load` returns them.
      metadata: the fields of weights.json but for format_version, the counts and weights_sha256.

    Returns:
      The metadata as written.

    Raises:
      InputError: the directory cannot be written.
    """
    directory = Path(directory)
    arrays = {
        f"{collection}/{layer}/{tensor}": np.ascontiguousarray(array)
        for collection, layers in variables.items()
        for layer, tensors in layers.items()
        for tensor, array in tensors.items()
    }
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        try:
            return _write_and_rename(directory, temporary, arrays, metadata)
        finally:
            shutil.rmtree(temporary)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error})") from error


def _write_and_rename(
    directory: Path, temporary: Path, arrays: dict[str, np.ndarray], metadata: dict[str, Any]
) -> dict[str, Any]:
    new = temporary / "new"
    new.mkdir()  # with the permissions of any directory; mkdtemp's are the owner's alone
    write_tensors(arrays, new / WEIGHTS_FILE)
    metadata = metadata | {
        "format_version": FORMAT_VERSION,
        "layers": len({name.split("/")[1] for name in arrays}),
        "tensors": len(arrays),
        "parameters": sum(array.size for array in arrays.values()),
        "weights_sha256": digest(new / WEIGHTS_FILE),
    }
    (new / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    old = temporary / "old"
    try:
        if directory.exists():
            os.rename(directory, old)
        os.rename(new, directory)
    except BaseException:  # Ctrl-C too
        if old.exists() and not directory.exists():
            os.rename(old, directory)
        raise
    return metadata


def check_output(directory: str | Path, overwrite: bool) -> None:
    """Refuses to write over anything but converted weights, and over those unless `overwrite`.

    Raises:
      InputError: the directory exists and may not be replaced.
    """
    directory = Path(directory)
    if not os.path.lexists(directory):
        return
    names = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    if names != {WEIGHTS_FILE, METADATA_FILE}:
        raise InputError(f"{directory}: exists and holds no converted weights, expected a new directory")
    if not overwrite:
        raise InputError(f"{directory}: exists already, expected a new directory or --overwrite")


def title(backbone: str, alpha: float, include_top: bool = False) -> str:
    """What people call a backbone, and its weights: openface, mobilenet alpha 0.75, ..."""
    words = f" alpha {width(alpha)}" if backbone == "mobilenet" else ""
    return f"{backbone}{words}{' with classifier' if include_top else ''}"


def width(alpha: float) -> str:
    """A width multiplier in words, of another one others: 1, 0.75, 0.7499999."""
    return str(alpha).removesuffix(".0")
