"""Converts Keras weights for a backbone:

    python -m weights_conversion.convert --backbone=mobilenet --alpha=0.75 --input=FILE --output=DIR
    python -m weights_conversion.convert --backbone=resnet50 --download

Strict both ways: a missing tensor, an unexpected one, a wrong shape or dtype, a value that is not finite
are all listed, by name, and nothing is written.
"""

import argparse
import dataclasses
import datetime
import functools
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import process
from fer_jax.arguments import Parser
from fer_jax.errors import InputError, exit_on_input_error
from fer_jax.files import digest
from weights_conversion import download, keras_h5, sources, store

# Licences of the published weights: ResNet-50 and MobileNet as in the documentation of keras.applications,
# OpenFace and VGG-Face as their authors state them.
LICENCES = {
    "openface": "Apache-2.0 (OpenFace, Carnegie Mellon University)",
    "vggface": "CC BY-NC 4.0, non-commercial research (Visual Geometry Group, Oxford)",
    "resnet50": "MIT (Kaiming He, ported by Keras)",
    "mobilenet": "Apache-2.0 (Google, Keras)",
}

# Order of a layer's tensors in Keras 3 files, which give positions in place of names: the order in
# which the layer's build() adds them (keras/src/layers).
TENSOR_ORDER = ("kernel", "depthwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")

# deepface names no layer of VGG-Face: conv2d, conv2d_1, ..., counted from wherever the session stood.
UNNAMED_CONVOLUTION = re.compile(r"conv2d(_\d+)?$")

# ResNet-50 as Keras named it before keras-applications 1.0.7: res2a_branch2b is conv2_block1_2_conv.
OLD_RESNET_NAME = re.compile(r"(res|bn)([2-5])([a-f])_branch(1|2a|2b|2c)$")
OLD_RESNET_PLACES = {"1": 0, "2a": 1, "2b": 2, "2c": 3}
OLD_RESNET_OTHERS = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", "fc1000": "predictions"}

HEAD = "head_"  # starts the names of the layers on top of the backbone in a file of weights_conversion.export

LARGEST_SEED = 2**32 - 1  # of a larger one, JAX drops the upper bits

Shapes = dict[str, dict[str, tuple[int, ...]]]


def convert(
    backbone: str,
    source: str | Path,
    output: str | Path,
    *,
    alpha: float = 1.0,
    include_top: bool = False,
    allow_missing: Sequence[str] = (),
    seed: int = 0,
    licence: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Converts a Keras file into a directory for `weights_conversion.load`.

    Args:
      backbone: one of `fer_jax.models.BACKBONES`.
      source: Keras 1 or 2 `.h5`, Keras 3 `.weights.h5` or `.keras`.
      output: directory to write; it must not exist, unless `overwrite` and it holds converted weights.
      alpha: MobileNet's width multiplier.
      include_top: convert the classifier layers too; otherwise they are left out.
      allow_missing: tensors ("conv_pw_13/kernel") to initialise as Keras would, where the file has none.
      seed: for those, 0 to 2**32 - 1.
      licence: label of the weights; None for that of the published ones.
      overwrite: replace converted weights at `output`.

    Returns:
      The metadata written, and under "left_out" the classifier layers left out: the head's too, where the
      file is of `weights_conversion.export`.

    Raises:
      InputError: the file cannot be read, does not fit, `output` may not be written, or what
        `check_options` refuses.
    """
    check_options(backbone, alpha, include_top, allow_missing, seed)
    store.check_output(output, overwrite)
    file, absent, left_out = read_fitting(backbone, source, alpha, include_top, allow_missing)
    found, expected = file.layers, expected_shapes(backbone, alpha, include_top=include_top)
    for layer, tensor in absent:
        found.setdefault(layer, {})[tensor] = initialise(layer, tensor, expected[layer][tensor], seed)
    variables: store.Variables = {"params": {}}
    for layer, tensors in expected.items():
        for tensor in tensors:
            collection = "batch_stats" if tensor.startswith("moving_") else "params"
            array = found[layer][tensor].astype(np.float32)
            variables.setdefault(collection, {}).setdefault(layer, {})[tensor] = array
    metadata = {
        "backbone": backbone,
        "alpha": alpha,
        "include_top": include_top,
        "source_file": Path(source).name,
        "source_sha256": digest(source),
        "keras_version": file.version,
        "converted_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "licence": licence or LICENCES[backbone],
        "initialised": [
            {"tensor": f"{layer}/{tensor}", "initialiser": _initialiser(tensor), "seed": seed}
            for layer, tensor in absent
        ],
    }
    return store.save(output, variables, metadata) | {"left_out": left_out}


def check_options(
    backbone: str, alpha: float, include_top: bool, allow_missing: Sequence[str], seed: int
) -> None:
    """Refuses options of `convert` that are wrong whatever the file.

    Raises:
      InputError: no such seed, alpha or tensor, a classifier that the backbone has not, or no device for JAX.
    """
    from fer_jax import compilation  # not for --help

    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed: expected 0 to {LARGEST_SEED}, got {seed}")
    compilation.check_device()
    expected = expected_shapes(backbone, alpha, include_top=include_top)
    if include_top and expected.keys() == expected_shapes(backbone, alpha, include_top=False).keys():
        raise InputError(f"--include_top: {backbone} has no classifier with weights")
    unknown = [name for name in allow_missing if name not in _flat(expected)]
    if unknown:
        raise InputError(f"--allow_missing: no such tensor {', '.join(unknown)}, expected layer/tensor")


def read_fitting(
    backbone: str,
    source: str | Path,
    alpha: float = 1.0,
    include_top: bool = False,
    allow_missing: Sequence[str] = (),
) -> tuple[keras_h5.KerasFile, list[tuple[str, str]], list[str]]:
    """Reads a file that holds the backbone's weights.

    Args:
      backbone, source, alpha, include_top, allow_missing: as of `convert`.

    Returns:
      The file with the backbone's layers alone, by their names; (layer, tensor) of those that it lacks and
      may lack; the layers left out.

    Raises:
      InputError: it cannot be read, or does not fit.
    """
    file = keras_h5.read(source)
    expected = expected_shapes(backbone, alpha, include_top=include_top)
    with_top = expected_shapes(backbone, alpha, include_top=True)
    found = name_as_expected(file, backbone, with_top, source)
    left_out = sorted((with_top.keys() - expected.keys()) & found.keys())
    left_out += sorted(layer for layer in found if layer.startswith(HEAD))
    found = {layer: tensors for layer, tensors in found.items() if layer not in left_out}
    headline = f"{source} does not fit {store.title(backbone, alpha)}"
    absent = check_tensors(found, expected, allow_missing, headline)
    return dataclasses.replace(file, layers=found), absent, left_out


def fetch(backbone: str, alpha: float) -> Path:
    """The backbone's published file, see `download.fetch`."""
    published = sources.published(backbone, alpha)
    return download.fetch(published, misfit=functools.partial(misfit, backbone, alpha))


def misfit(backbone: str, alpha: float, path: Path) -> str:
    """Says that a file does not hold the backbone's weights, or nothing."""
    try:
        read_fitting(backbone, path, alpha)
    except InputError:
        return f"does not fit {store.title(backbone, alpha)}"
    return ""


@functools.cache
def expected_shapes(backbone: str, alpha: float = 1.0, include_top: bool = False) -> Shapes:
    """Shapes of the backbone's tensors, from the Flax module itself: layer to tensor to shape.

    Layers are in Keras's order, those without weights left out; tensors are in `TENSOR_ORDER`.
    """
    from fer_jax import models

    layers = models.trace_layers(models.build(backbone, alpha=alpha, include_top=include_top))
    return {
        layer.name: {name: layer.tensors[name] for name in sorted(layer.tensors, key=TENSOR_ORDER.index)}
        for layer in layers
        if layer.tensors
    }


def name_as_expected(
    file: keras_h5.KerasFile, backbone: str, expected: Shapes, source: str | Path
) -> keras_h5.Layers:
    """Gives the file's layers and tensors the backbone's names, where it is known how.

    Args:
      file: what was read.
      backbone: its name.
      expected: the backbone's tensors, classifier included.
      source: the file's name, for the error.

    Returns:
      The same arrays; a layer or tensor that nothing is known of keeps its name.

    Raises:
      InputError: layers that are only told apart by their order, but not as many as expected.
    """
    layers = file.layers
    names: dict[str, str] = {}
    if not file.named and not layers.keys() & expected.keys():
        names = _names_by_class(expected)
    elif backbone == "vggface" and all(UNNAMED_CONVOLUTION.match(name) for name in layers):
        if len(layers) != len(expected):
            raise InputError(
                f"{source}: {len(layers)} unnamed convolutions with weights, which only their order tells "
                f"apart, expected the {len(expected)} of {backbone}"
            )
        names = dict(zip(layers, expected, strict=True))
    elif backbone == "resnet50" and "res2a_branch1" in layers:
        names = {name: _new_resnet_name(name) for name in layers}
    layers = {names.get(name, name): tensors for name, tensors in layers.items()}
    return {name: _name_tensors(tensors, expected.get(name, {})) for name, tensors in layers.items()}


def _names_by_class(expected: Shapes) -> dict[str, str]:
    """Keras 3's key of each layer (conv2d_1: the second convolution) to the layer's name."""
    names: dict[str, str] = {}
    used: Counter[str] = Counter()
    for name, tensors in expected.items():
        kind = _layer_class(tensors)
        names[f"{kind}_{used[kind]}" if used[kind] else kind] = name
        used[kind] += 1
    return names


def _layer_class(tensors: dict[str, tuple[int, ...]]) -> str:
    if "gamma" in tensors:
        return "batch_normalization"
    if "depthwise_kernel" in tensors:
        return "depthwise_conv2d"
    return "conv2d" if len(tensors["kernel"]) == 4 else "dense"


def _new_resnet_name(old: str) -> str:
    match = OLD_RESNET_NAME.match(old)
    if not match:
        return OLD_RESNET_OTHERS.get(old, old)
    kind, stack, block, branch = match.groups()
    place = f"conv{stack}_block{ord(block) - ord('a') + 1}_{OLD_RESNET_PLACES[branch]}"
    return f"{place}_{'conv' if kind == 'res' else 'bn'}"


def _name_tensors(
    tensors: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    if set(tensors) == {str(i) for i in range(len(expected))}:
        return {name: tensors[str(i)] for i, name in enumerate(expected)}
    if "depthwise_kernel" in expected and "kernel" in tensors:  # Keras 3's name for it
        return {"depthwise_kernel" if name == "kernel" else name: array for name, array in tensors.items()}
    return tensors


def check_tensors(
    found: keras_h5.Layers, expected: Shapes, allow_missing: Sequence[str], headline: str
) -> list[tuple[str, str]]:
    """Compares what was found with what is expected, both ways.

    Args:
      found: layer to tensor to array.
      expected: layer to tensor to shape.
      allow_missing: names of tensors that may be missing.
      headline: start of the error's first line.

    Returns:
      (layer, tensor) of those that are missing and may be.

    Raises:
      InputError: every offender, a line each.
    """
    wanted = _flat(expected)
    got = _flat(found)
    missing = [name for name in wanted if name not in got]
    offences = {
        name: f"missing, expected shape {wanted[name]}" for name in missing if name not in allow_missing
    }
    for name, array in got.items():
        if name not in wanted:
            offences[name] = f"unexpected, shape {array.shape}"
        elif array.shape != wanted[name]:
            offences[name] = f"shape {array.shape}, expected {wanted[name]}"
        elif array.dtype.kind != "f" or array.dtype.itemsize != 4:
            offences[name] = f"dtype {array.dtype}, expected float32"
        elif not np.isfinite(array).all():
            offences[name] = f"{np.count_nonzero(~np.isfinite(array))} values are NaN or infinite"
    if offences:
        count = f"{len(offences)} tensor{'s' if len(offences) > 1 else ''}"
        lines = [f"  {name}: {offence}" for name, offence in offences.items()]
        hint = ["is it of another backbone or alpha?"] if len(offences) > len(wanted) / 2 else []
        raise InputError("\n".join([f"{headline}, {count} at fault:", *lines, *hint]))
    return [(layer, tensor) for layer, tensor in (name.split("/") for name in missing)]


def _flat(layers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{layer}/{name}": item for layer, tensors in layers.items() for name, item in tensors.items()}


def initialise(layer: str, tensor: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Keras's initial value of a tensor: float32, glorot uniform for kernels, else zeros or ones.

    Glorot uniform as keras/src/initializers/random_initializers.py has it: uniform within
    sqrt(6 / (fan_in + fan_out)), with fans counted over the last two axes, of depthwise kernels too. It
    depends on the seed and the tensor's name alone.
    """
    import jax

    if _initialiser(tensor) == "glorot_uniform":
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(f"{layer}/{tensor}".encode()))
        return np.asarray(jax.nn.initializers.glorot_uniform()(key, shape))
    return np.full(shape, 1 if _initialiser(tensor) == "ones" else 0, np.float32)


def _initialiser(tensor: str) -> str:
    if tensor in ("kernel", "depthwise_kernel"):
        return "glorot_uniform"
    return "ones" if tensor in ("gamma", "moving_variance") else "zeros"


def report(metadata: dict[str, Any], output: str) -> str:
    """The table that the command prints."""
    rows = {
        "weights": store.describe(metadata),
        "written by": f"Keras {metadata['keras_version']}",
        "layers": f"{metadata['layers']:,} with weights",
        "tensors": f"{metadata['tensors']:,}",
        "parameters": f"{metadata['parameters']:,}",
        "left out": ", ".join(metadata["left_out"]) or "nothing",
        "initialised": ", ".join(entry["tensor"] for entry in metadata["initialised"]) or "nothing",
        "source sha256": metadata["source_sha256"],
        "licence": metadata["licence"],
        "written to": output,
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m weights_conversion.convert`."""
    parser = Parser(
        "python -m weights_conversion.convert",
        description="Converts a Keras weights file (.h5, .weights.h5, .keras) for a backbone of fer-jax.",
    )
    add: Callable[..., Any] = parser.add_argument
    add("--backbone", required=True, choices=sorted(LICENCES))
    add("--alpha", type=float, default=1.0, help="MobileNet's width multiplier (default: %(default)s)")
    add("--input", metavar="FILE", help="the Keras file")
    add("--download", action="store_true", help="take the published file, from the cache or its publisher")
    add(
        "--output", metavar="DIR", help="directory to write (default: weights/ and the name, where runs look)"
    )
    add("--include_top", action="store_true", help="convert the classifier layers too")
    add(
        "--allow_missing",
        default="",
        metavar="LAYER/TENSOR,...",
        help="tensors to initialise as Keras would where the file lacks them; marks the weights as such",
    )
    add("--seed", type=int, default=0, help="seed of that initialisation (default: %(default)s)")
    add("--licence", help="label to record (default: the licence of the published weights)")
    add("--overwrite", action="store_true", help="replace converted weights in DIR")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exit status 2 on input that cannot be used."""
    with exit_on_input_error():
        args = parse_arguments(arguments)
    with exit_on_input_error(args.debug):
        process.print_any_name()
        if bool(args.input) == args.download:
            raise InputError("expected one of --input and --download")
        output = args.output or f"weights/{store.directory_name(args.backbone, args.alpha)}"
        store.check_output(output, args.overwrite)
        allow_missing = [name for name in args.allow_missing.split(",") if name]
        check_options(args.backbone, args.alpha, args.include_top, allow_missing, args.seed)
        if args.download and args.include_top:
            raise InputError("--include_top: the published files have no classifier, expected --input")
        source = args.input or fetch(args.backbone, args.alpha)
        metadata = convert(
            args.backbone,
            source,
            output,
            alpha=args.alpha,
            include_top=args.include_top,
            allow_missing=allow_missing,
            seed=args.seed,
            licence=args.licence,
            overwrite=args.overwrite,
        )
        print(report(metadata, str(output)))


if __name__ == "__main__":
    main(sys.argv[1:])
