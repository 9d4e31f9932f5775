"""What a run leaves in its directory: who it is (run.json), results.json, the figures, the last words."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fer_jax import metrics, models, report
from fer_jax.data.dataset import FaceDataset
from fer_jax.data.loading import DRAWN
from fer_jax.data.preprocessing import resolve_scaling
from fer_jax.data.splits import Split
from fer_jax.errors import InputError
from fer_jax.initialisation import Init
from fer_jax.models.classifier import Classifier

PACKAGES = (
    "fer-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy",
    "scikit-learn",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same in a run: configuration, data, model."""

    config: Any
    init: Init
    dataset: FaceDataset
    split: Split
    dropped: dict[str, Any] | None
    model: Classifier
    learning: frozenset[str]

    @property
    def title(self) -> str:
        """What every figure is headed with."""
        config, source = self.config, "drawn faces" if self.dataset.kind == DRAWN else "FER2013"
        alpha = f" alpha {config.alpha:g}" if config.backbone == "mobilenet" else ""
        size = self.model.backbone.image_size
        title = f"{config.backbone}{alpha} at {size}, {self.init.name}, on {source} (split {self.split.name})"
        if self.init.weights and self.init.weights["initialised"]:
            missing = ", ".join(entry["tensor"] for entry in self.init.weights["initialised"])
            title += f", {missing} not pretrained"
        return title


def claim(workdir: Path, run: Run) -> Path:
    """Makes the directory this run's, and returns it.

    Raises:
      InputError: it holds another run, or files that are no run's.
    """
    identity = {
        "config": run.config.to_dict(),
        "init": run.init.name,
        "weights_sha256": run.init.weights and run.init.weights["weights_sha256"],
        "data_sha256": run.dataset.sha256,
        "split_sha256": run.split.sha256,
    }
    identity = json.loads(json.dumps(identity))
    path = workdir / "run.json"
    if path.exists():
        differences = _differences(json.loads(path.read_text(encoding="utf-8")), identity)
        if differences:
            raise InputError(f"{workdir}: holds another run, which differs in {'; '.join(differences)}")
    elif workdir.is_dir() and any(workdir.iterdir()):
        raise InputError(f"{workdir}: is not empty and holds no run (no run.json); choose another --workdir")
    else:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{workdir}: cannot be made ({error.strerror})") from error
        report.write_json(path, identity)
    return workdir


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            d for key in keys for d in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name} ({old} there, {new} here)"]


def write(
    workdir: Path,
    run: Run,
    frozen_part: str,
    feature_rms: float | None,
    history: list[dict[str, float]],
    probabilities: np.ndarray,
) -> dict[str, Any]:
    """Writes results.json and the figures, and prints the tables and where everything is.

    Args:
      frozen_part: when the frozen part of the backbone was computed.
      feature_rms: root mean square of the backbone's features before training, where measured.
      history: a row an epoch.
      probabilities: float32 [test images, classes], in the order of the test split.

    Returns:
      What results.json holds.
    """
    dataset, rows = run.dataset, run.split.test
    labels, names = dataset.labels[rows], dataset.class_names
    test = metrics.classification(labels, probabilities.argmax(-1), names)
    values = {
        "title": run.title,
        **_provenance(run),
        "model": {**_model(run, feature_rms), "frozen_part": frozen_part},
        **metrics.rates(history),
        "final": history[-1],
        "test": test,
    }
    shown = report.choose_faces(labels, probabilities)
    report.plot_history(history, run.title, workdir / "history.png")
    report.plot_confusion(np.asarray(test["confusion"]), names, run.title, workdir / "confusion.png")
    report.plot_faces(
        dataset.images[rows[shown]],
        labels[shown],
        probabilities[shown],
        names,
        run.title,
        workdir / "faces.png",
    )
    report.write_history_csv(workdir / "history.csv", history)
    report.write_json(workdir / "results.json", values)
    _print(workdir, run, history, test)
    return values


def _provenance(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "config": config.to_dict(),
        "readings": _readings(run),
        "init": {"name": run.init.name, "reason": run.init.reason, "weights": run.init.weights},
        "data": {
            "kind": run.dataset.kind,
            "source": Path(run.dataset.source).name,
            "sha256": run.dataset.sha256,
            "notes": [*run.dataset.notes, *run.split.notes],
            "dropped_by_deduplication": run.dropped,
        },
        "split": {
            "name": run.split.name,
            "sizes": {name: len(rows) for name, rows in run.split.parts.items()},
            "sha256_of_int64_indices": run.split.sha256,
        },
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
    }


def _readings(run: Run) -> dict[str, str]:
    """How this run reads what the paper leaves open; none of it is the paper's own word."""
    config, head = run.config, run.model.head
    adam = config.optimizer
    frozen = {
        "pretrained": f"freeze.mode {config.freeze.mode}",
        "random": f"random backbone, freeze.mode {config.freeze.mode}, as for pretrained weights",
        "scratch": "random backbone, nothing frozen",
    }
    on = [f"{name} {value}" for name, value in config.augment.items() if value]
    hidden = "".join(f", dense {units}" for units in head.hidden)
    return {
        "split": f"{run.split.name}, random_state {config.data.split_seed}",
        "freezing": frozen[run.init.name],
        "optimizer": f"Keras's Adam, learning rate {adam.learning_rate}, betas {adam.beta_1} {adam.beta_2}, "
        f"epsilon {adam.epsilon} on the uncorrected second moment",
        "batch": f"{config.batch_size}, last smaller batch {'dropped' if config.drop_last else 'trained'}",
        "head": f"{'global average pooling' if head.pooling == 'avg' else 'flatten'}"
        f"{', batch normalisation' if head.batch_norm else ''}{hidden}, dense {head.classes}, softmax",
        "input": f"{run.model.backbone.image_size} px, bilinear, half-pixel centres, no antialiasing; "
        f"scaling {resolve_scaling(config.data.scaling, config.backbone)}",
        "train metrics": "running mean over the epoch's images; epoch 0 in inference mode, before training",
        "augmentation": ", ".join(on) or "none",
        "class weights": config.class_weight,
        "duplicates": "dropped after the split" if config.data.deduplicate else "kept",
        "seeds": f"seed {config.seed} (head, order, dropout, augmentation), "
        f"init_seed {config.init_seed} (backbone)",
    }


def _model(run: Run, feature_rms: float | None) -> dict[str, Any]:
    layers = models.trace_layers(run.model.backbone)
    result: dict[str, Any] = {
        "backbone_parameters": sum(layer.parameters for layer in layers),
        "backbone_parameters_that_learn": sum(
            layer.learnable for layer in layers if layer.name in run.learning
        ),
        "layers_that_learn": [layer.name for layer in layers if layer.name in run.learning],
        "gflop_per_image": sum(layer.flops for layer in layers) / 1e9,
    }
    if feature_rms is not None:
        result["initial_feature_rms"] = feature_rms
    return result


def git_revision() -> str | None:
    """The commit of the checkout this runs from, "-dirty" where tracked files differ; None elsewhere."""
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = None
    return result


def _print(workdir: Path, run: Run, history: list[dict[str, float]], test: dict[str, Any]) -> None:
    print(f"\n{run.title}\n\n{report.epoch_table(history)}\n")
    print(f"test: accuracy {test['accuracy']:.4f}, macro F1 {test['macro_f1']:.4f}\n")
    print(f"{report.class_table(test)}\n")
    for note in (*run.dataset.notes, *run.split.notes):
        print(f"NOTE: {note}")
    for name in ("history.csv", "results.json", "history.png", "confusion.png", "faces.png", "tensorboard"):
        print(f"  {workdir / name}")
