"""Reads the weights out of a Keras file with h5py alone; nothing that the file holds is ever run.

Four layouts are known, told apart by content, not by file name:
  - Keras 1 and 2 `.h5` weights: a group a layer, attributes `layer_names` and `weight_names`;
  - the same inside the group `model_weights` of a whole-model `.h5`;
  - Keras 3 `.weights.h5`: groups `layers/<class>_<number>/vars/<position>`
    (keras/src/saving/saving_lib.py, `_save_container_state`);
  - Keras 3 `.keras`: a zip archive of `config.json` and `model.weights.h5`.
"""

import dataclasses
import io
import itertools
import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from tqdm import tqdm

from fer_jax.errors import InputError

# A damaged file may claim any size; VGG-Face, the largest backbone, takes 0.6 GB.
MAX_BYTES = 4 * 2**30

# Where Keras 3 keeps a model's layers: since 2.14, and in 2.12 and 2.13.
LAYER_GROUPS = ("layers", "_layer_checkpoint_dependencies")

# The last part of a weight's name: "kernel:0", "conv1_W:0", "bn_conv1_running_std_1:0".
TENSOR_NAME = re.compile(
    r"(?:^|_)(depthwise_kernel|kernel|bias|gamma|beta|moving_mean|moving_variance"
    r"|W|b|running_mean|running_std)(?:_\d+)?(?::\d+)?$"
)
# Keras 1's names. Its running_std holds the variance: Keras 2 loads it as moving_variance, unchanged.
KERAS_1_NAMES = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}

Layers = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class KerasFile:
    """What a Keras weights file holds.

    Attributes:
      layers: the layers that have weights: layer name to tensor name to array, of the dtype it has in
        the file; in the file's layer order, in Keras 3 files class by class. Tensors bear Keras 2's names
        (kernel, bias, gamma, ...), or in Keras 3 files, which name no tensors, their position ("0", "1").
      named: whether layers bear their own names. Otherwise they bear Keras 3's keys, class and number
        (conv2d, conv2d_1, ...), which count each class in layer order.
      version: version of Keras that wrote the file, or "not recorded".
    """

    layers: Layers
    named: bool
    version: str


def read(path: str | Path) -> KerasFile:
    """Reads a Keras weights file or saved model; optimizer state and random seeds are passed over.

    Args:
      path: a Keras 1 or 2 `.h5`, a Keras 3 `.weights.h5` or a `.keras` file.

    Returns:
      The layers with weights.

    Raises:
      InputError: the file is missing, truncated or of another format; it holds a link, storage outside
        itself, or data that are no numbers; or its kernels are Theano's.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a Keras .h5, .weights.h5 or .keras file")
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_archive(path)
            file.seek(0)
            return _read_h5(file, str(path))
    except InputError:
        raise
    except Exception as error:  # h5py and zipfile raise nearly anything on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: truncated, or no Keras .h5, .weights.h5 or .keras file ({reason})"
        ) from error


def _read_archive(path: Path) -> KerasFile:
    with zipfile.ZipFile(path) as archive:

        def member(name: str) -> bytes:
            try:
                info = archive.getinfo(name)
            except KeyError:
                raise InputError(f"{path}: a zip archive without {name}, expected a .keras file") from None
            if info.file_size > MAX_BYTES:
                raise InputError(f"{path}: {name} claims {info.file_size:,} bytes, over {MAX_BYTES:,}")
            return archive.read(info)

        config = json.loads(member("config.json"))
        metadata = json.loads(member("metadata.json"))
        weights = io.BytesIO(member("model.weights.h5"))
    file = _read_h5(weights, f"{path}, model.weights.h5", config)
    return dataclasses.replace(file, version=str(metadata.get("keras_version", file.version)))


def _read_h5(file: BinaryIO, label: str, config: dict[str, Any] | None = None) -> KerasFile:
    with h5py.File(file, "r") as h5:
        datasets = _safe_datasets(h5, label)
        for root in (h5, h5.get("model_weights")):
            if isinstance(root, h5py.Group) and _name_list(root, "layer_names") is not None:
                return _read_keras_2(h5, root, datasets, label)
        if any(isinstance(h5.get(group), h5py.Group) for group in LAYER_GROUPS):
            return _read_keras_3(datasets, label, _config_names(config) if config else {})
    raise InputError(
        f"{label}: holds no Keras weights, expected attribute layer_names or group model_weights or layers"
    )


def _safe_datasets(h5: h5py.File, label: str) -> dict[str, h5py.Dataset]:
    """Every data set of the file by path, unread; refuses whatever may lead out of the file."""
    datasets: dict[str, h5py.Dataset] = {}
    pending: list[h5py.Group] = [h5]
    seen = set()
    while pending:
        group = pending.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            raise InputError(f"{label}: group {group.name} is linked twice, expected a tree of groups")
        seen.add(address)
        for key in group:
            name = f"{group.name}/{key}".lstrip("/")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise InputError(f"{label}: {name} is a link, expected every weight inside the file")
            item = group[key]
            if isinstance(item, h5py.Group):
                pending.append(item)
            elif isinstance(item, h5py.Dataset):
                _check_dataset(item, f"{label}: {name}")
                datasets[name] = item
            else:
                raise InputError(f"{label}: {name} is neither a group nor a data set")
    return datasets


def _check_dataset(dataset: h5py.Dataset, label: str) -> None:
    if dataset.is_virtual or dataset.external:
        raise InputError(f"{label} is stored outside the file, expected every weight inside it")
    if dataset.dtype.kind not in "fiub" or dataset.shape is None:
        raise InputError(f"{label} has dtype {dataset.dtype}, expected an array of numbers")
    stored = dataset.id.get_storage_size()
    filtered = dataset.id.get_create_plist().get_nfilters() > 0  # compressed
    if stored < (min(1, dataset.nbytes) if filtered else dataset.nbytes):  # HDF5 reads the rest as zeros
        raise InputError(
            f"{label} was never wholly written, expected {dataset.nbytes:,} bytes, found {stored:,}"
        )


def _read_keras_2(
    h5: h5py.File, root: h5py.Group, datasets: dict[str, h5py.Dataset], label: str
) -> KerasFile:
    """The layout of keras/src/legacy/saving/legacy_h5_format.py."""
    if _attribute(root, "backend") == ["theano"]:
        raise InputError(f"{label}: written on Theano, whose kernels are flipped, expected another backend")
    prefix = "" if root.name == "/" else root.name.lstrip("/") + "/"
    pending = {
        name: dataset
        for name, dataset in datasets.items()
        if name.startswith(prefix) and not name.startswith("optimizer_weights/")
    }
    found: dict[str, dict[str, h5py.Dataset]] = {}
    layer_names = _name_list(root, "layer_names") or []
    for group_name in [*layer_names, "top_level_model_weights"]:
        group = root.get(group_name)
        weight_names = _name_list(group, "weight_names") if isinstance(group, h5py.Group) else None
        if weight_names is None:
            if group_name in layer_names:
                raise InputError(f"{label}: layer {group_name} has no attribute weight_names")
            continue
        owners = [name.split("/")[-2] if "/" in name else group_name for name in weight_names]
        nested = len(set(owners)) > 1  # a model among the layers; the layers inside it count
        for weight_name, owner in zip(weight_names, owners, strict=True):
            dataset = pending.pop(f"{prefix}{group_name}/{weight_name}", None)
            if dataset is not None:  # listed without data: the caller sees it missing
                _add(found, owner if nested else group_name, _tensor_name(weight_name), dataset, label)
    for name, dataset in pending.items():  # data that no attribute lists
        layer, _, tensor = name.removeprefix(prefix).partition("/")
        _add(found, layer, tensor or "data", dataset, label)
    version = _attribute(root, "keras_version") or _attribute(h5, "keras_version") or ["not recorded"]
    return KerasFile(_load(found, label), True, version[0])


def _read_keras_3(datasets: dict[str, h5py.Dataset], label: str, names: dict[str, str]) -> KerasFile:
    found: dict[str, dict[str, h5py.Dataset]] = {}
    named = True
    for path in sorted(datasets, key=_natural_order):
        parts = path.split("/")
        if parts[0] not in (*LAYER_GROUPS, "vars") or "seed_generator" in parts:
            continue  # optimizer, metrics, the random state of dropout
        if "vars" not in parts[:-1]:
            _add(found, "/".join(parts[:-1]), parts[-1], datasets[path], label)
            continue
        at = parts.index("vars")
        key = "/".join(["layers", *parts[1:at]])
        attribute = _attribute(datasets[path].parent, "name")
        name = attribute[0] if attribute else names.get(key)
        named = named and name is not None
        _add(found, name or key.split("/")[-1], "/".join(parts[at + 1 :]), datasets[path], label)
    return KerasFile(_load(found, label), named, "not recorded")


def _config_names(config: dict[str, Any], path: str = "layers") -> dict[str, str]:
    """Layer names of a `.keras` file by key, counted as Keras counts its classes when it saves."""
    names: dict[str, str] = {}
    used: Counter[str] = Counter()
    for layer in config["config"].get("layers", []):
        kind = _snake_case(layer["class_name"].rsplit(">", 1)[-1])
        key = f"{path}/{kind}_{used[kind]}" if used[kind] else f"{path}/{kind}"
        used[kind] += 1
        names[key] = layer["config"]["name"]
        if "layers" in layer["config"]:
            names |= _config_names(layer, f"{key}/layers")
    return names


def _snake_case(name: str) -> str:
    # keras/src/utils/naming.py, `to_snake_case`
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _natural_order(path: str) -> list[tuple[str, int]]:
    # conv2d before conv2d_1, conv2d_9 before conv2d_10
    return [(text, int(number or 0)) for text, number in re.findall(r"([^/]*?)_?(\d*)(?:/|$)", path)]


def _tensor_name(weight_name: str) -> str:
    last = weight_name.split("/")[-1]
    match = TENSOR_NAME.search(last)
    return KERAS_1_NAMES.get(match[1], match[1]) if match else last


def _add(
    found: dict[str, dict[str, h5py.Dataset]], layer: str, tensor: str, dataset: h5py.Dataset, label: str
) -> None:
    if tensor in found.setdefault(layer, {}):
        raise InputError(f"{label}: {layer}/{tensor} occurs twice, expected one array for each tensor")
    found[layer][tensor] = dataset


def _load(found: dict[str, dict[str, h5py.Dataset]], label: str) -> Layers:
    entries = [(layer, name, item) for layer, tensors in found.items() for name, item in tensors.items()]
    size = sum(dataset.nbytes for _, _, dataset in entries)
    if size > MAX_BYTES:
        raise InputError(f"{label}: claims {size:,} bytes of weights, over {MAX_BYTES:,}")
    layers: Layers = {}
    for layer, name, dataset in tqdm(entries, desc="reading", unit=" tensors", delay=2, leave=False):
        layers.setdefault(layer, {})[name] = np.asarray(dataset[()])
    return layers


def _name_list(group: h5py.Group, name: str) -> list[str] | None:
    """A list of names, which Keras cuts into name0, name1, ... where it is over 64 KB; None if absent."""
    whole = _attribute(group, name)
    if whole is not None or f"{name}0" not in group.attrs:
        return whole
    chunks = itertools.takewhile(
        lambda chunk: chunk is not None, (_attribute(group, f"{name}{i}") for i in itertools.count())
    )
    return [item for chunk in chunks for item in chunk or []]


def _attribute(group: h5py.Group, name: str) -> list[str] | None:
    """The text of an attribute, one or many; None if absent."""
    if name not in group.attrs:
        return None
    attribute = group.attrs.get_id(name)
    if 0 in attribute.shape:
        return []  # Keras writes an empty list as numbers
    # Where damage has changed the type, HDF5 crashes on reading some of the others.
    if not isinstance(attribute.get_type(), h5py.h5t.TypeStringID):
        raise ValueError(f"attribute {name} of {group.name} holds no text")
    items = np.ravel(group.attrs[name])
    return [item.decode() if isinstance(item, bytes) else str(item) for item in items]
