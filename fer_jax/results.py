"""What a run leaves in its directory at its end: results.json, the figures, the last words."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fer_jax import compilation, metrics, models, process, report, runs, saved_model
from fer_jax.data import splits
from fer_jax.data.loading import DRAWN
from fer_jax.data.preprocessing import resolve_scaling

PACKAGES = (
    "fer-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy",
    "scikit-learn",
)  # fmt: skip
_WEIGHTED = (
    "; from epoch 1 on the train loss is weighted by class, that of epoch 0 and every validation loss are not"
)
_WHOSE = {DRAWN: "what was drawn", "own": "the folders' names"}  # whose labels, by the data's kind


def write_history(workdir: Path, lanes: Sequence[runs.Lane], history: list[report.History]) -> None:
    """Writes history.csv: a row an epoch, of several lanes one after the other with what they differ in."""
    if len(lanes) == 1:
        report.write_history_csv(workdir / "history.csv", history[0])
        return
    rows = [
        {"learning_rate": lane.learning_rate, "seed": lane.seed, **row}
        for lane, rows in zip(lanes, history, strict=True)
        for row in rows
    ]
    report.write_history_csv(workdir / "history.csv", rows)


def write(
    workdir: Path,
    run: runs.Run,
    frozen_part: str,
    feature_rms: float | None,
    history: list[report.History],
    probabilities: np.ndarray,
    earlier_revisions: list[str | None],
) -> dict[str, Any]:
    """Writes results.json and the figures, and prints the tables and where everything is.

    Args:
      frozen_part: when the frozen part of the backbone was computed.
      feature_rms: root mean square of the backbone's features before training, where measured.
      history: for every lane a row an epoch.
      probabilities: float32 [lanes, test images, classes], in the order of the test split.
      earlier_revisions: of `claimed`.

    Returns:
      What results.json holds.
    """
    tests = _tests(run, probabilities.argmax(-1))
    lanes = [
        {**metrics.rates(rows), "final": rows[-1], **test} for rows, test in zip(history, tests, strict=True)
    ]
    groups: dict[float, list[int]] = {}
    for i, lane in enumerate(run.lanes):
        groups.setdefault(lane.learning_rate, []).append(i)
    values = {
        "title": run.title,
        **_provenance(run),
        "earlier_revisions": earlier_revisions,
        "model": {**_model(run, feature_rms), "frozen_part": frozen_part},
    }
    if len(lanes) == 1:
        values |= lanes[0]
    else:
        several = [dataclasses.asdict(lane) | lanes[i] for i, lane in enumerate(run.lanes)]
        values |= {
            "lanes": several,
            "learning_rates": [_summary(several, group) for group in groups.values()],
        }
    files = ["history.csv", "results.json", "tensorboard", saved_model.FILE]
    write_history(workdir, run.lanes, history)
    report.write_json(workdir / "results.json", values)
    for rate, group in groups.items():
        files += _figures(workdir, run, rate, group, history, lanes, probabilities)
    _print(run, history, lanes, groups)
    for name in sorted(files):
        print(f"  {workdir / name}")
    return values


def _tests(run: runs.Run, predictions: np.ndarray) -> list[dict[str, Any]]:
    """For every lane the quality on test, and in short on what deduplication would leave of it, where it was
    not asked for.

    Args:
      predictions: classes, int [lanes, test images].
    """
    labels, names = run.dataset.labels[run.split.test], run.dataset.class_names
    tests: list[dict[str, Any]] = [{"test": metrics.classification(labels, p, names)} for p in predictions]
    if run.config.data.deduplicate:
        return tests
    kept = splits.kept_of_test(run.dataset, run.split)
    for test, predicted in zip(tests, predictions, strict=True) if kept.any() else ():
        found = metrics.classification(labels[kept], predicted[kept], names)
        short = {name: found[name] for name in ("accuracy", "macro_f1")}
        test["test_without_duplicates"] = {"images": int(kept.sum()), **short}
    return tests


def model_spec(run: runs.Run, lane: runs.Lane, final: Mapping[str, float]) -> saved_model.Spec:
    """What the trained model of a lane is; `final` is its last row of the history."""
    config, head, dataset = run.config, run.model.head, run.dataset
    provenance = _provenance(run)
    told = ("init", "data", "split", "git_revision")
    return saved_model.Spec(
        backbone=config.backbone,
        alpha=config.alpha,
        image_size=run.model.backbone.image_size,
        pooling=head.pooling,
        batch_norm=head.batch_norm,
        hidden=tuple(head.hidden),
        scaling=resolve_scaling(config.data.scaling, config.backbone),
        class_names=dataset.class_names,
        side=dataset.side,
        channels=dataset.channels,
        provenance={
            "title": run.title,
            **dataclasses.asdict(lane),
            "final": dict(final),
            **{name: provenance[name] for name in told},
        },
    )


def _summary(lanes: Sequence[dict[str, Any]], group: Sequence[int]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds of one learning rate."""
    members = [lanes[i] for i in group]
    told = [{k: lane[k] for k in ("initial", "mcr", "mofr", "final", "test")} for lane in members]
    mean, std = metrics.mean_and_std(told)
    seeds = [lane["seed"] for lane in members]
    return {"learning_rate": members[0]["learning_rate"], "seeds": seeds, "mean": mean, "std": std}


def _figures(
    workdir: Path,
    run: runs.Run,
    rate: float,
    group: Sequence[int],
    history: list[report.History],
    lanes: Sequence[dict[str, Any]],
    probabilities: np.ndarray,
) -> list[str]:
    """Draws the figures of one learning rate; faces are those of its first seed. Returns the file names."""
    several_rates = len(run.config.optimizer.learning_rate) > 1
    suffix = f"_{rate:g}" if several_rates else ""
    title = f"{run.title}, learning rate {rate:g}" if several_rates else run.title
    over = f"{title}, {len(group)} seeds" if len(group) > 1 else title
    first = f"{title}, seed {run.lanes[group[0]].seed}" if len(group) > 1 else title
    dataset, rows = run.dataset, run.split.test
    labels, names, chances = dataset.labels[rows], dataset.class_names, probabilities[group[0]]
    shown = report.choose_faces(labels, chances)
    files = [f"{kind}{suffix}.png" for kind in ("history", "confusion", "faces")]
    report.plot_history([history[i] for i in group], over, workdir / files[0])
    confusion = np.mean([lanes[i]["test"]["confusion"] for i in group], axis=0)
    report.plot_confusion(confusion, names, over, workdir / files[1])
    report.plot_faces(
        dataset.images[rows[shown]], labels[shown], chances[shown], names, first, workdir / files[2]
    )
    return files


def _provenance(run: runs.Run) -> dict[str, Any]:
    config, dataset = run.config, run.dataset
    return {
        "config": config.to_dict(),
        "readings": _readings(run),
        "init": {"name": run.init.name, "reason": run.init.reason, "weights": run.init.weights},
        "data": {
            "kind": dataset.kind,
            "source": dataset.name,
            "sha256": dataset.sha256,
            **runs.faces_of(dataset),
            "notes": [*dataset.notes, *run.split.notes],
            "dropped_by_deduplication": run.dropped,
        },
        "split": {
            "name": run.split.name,
            "sizes": {name: len(rows) for name, rows in run.split.parts.items()},
            "sha256_of_int64_indices": run.split.sha256,
        },
        "git_revision": process.git_revision(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "processor": process.processor(),
            "count": jax.device_count(),
            "cpu_cores": process.cpu_cores(),
        },
    }


def _readings(run: runs.Run) -> dict[str, str]:
    """How this run reads what the paper leaves open; none of it is the paper's own word."""
    config, head = run.config, run.model.head
    adam = config.optimizer
    rates = " and ".join(f"{rate:g}" for rate in adam.learning_rate)
    seeds = " to ".join(str(seed) for seed in sorted({run.lanes[0].seed, run.lanes[-1].seed}))
    mode, last = config.freeze.mode, config.freeze.last
    mode += f" of {last}" if mode == "last" and last != 4 else ""  # the paper's go without saying
    mode += f", {', '.join(map(str, config.freeze.layers))}" if mode == "layers" else ""
    frozen = {
        "pretrained": f"freeze.mode {mode}",
        "random": f"random backbone, freeze.mode {mode}, as for pretrained weights",
        "scratch": "random backbone, nothing frozen",
    }
    on = [f"{name} {value}" for name, value in config.augment.items() if value]
    hidden = "".join(f", dense {units}" for units in head.hidden)
    rate = config.head.dropout
    dropout = f"; dropout {rate:g} before each dense layer" if rate else ""
    shares = f" {tuple(config.data.fractions)}" if config.data.split == "fractions" else ""
    compute = [f"backbone in {config.compute_dtype}, head and statistics in float32", compilation.precision()]
    return {
        "split": f"{run.split.name}{shares}, random_state {config.data.split_seed}",
        "freezing": frozen[run.init.name],
        "optimizer": f"Keras's Adam, learning rate {rates}, betas {adam.beta_1} {adam.beta_2}, "
        f"epsilon {adam.epsilon} on the uncorrected second moment",
        "batch": f"{config.batch_size}, last smaller batch {'dropped' if config.drop_last else 'trained'}",
        "head": f"{'global average pooling' if head.pooling == 'avg' else 'flatten'}"
        f"{', batch normalisation' if head.batch_norm else ''}{hidden}, dense {head.classes}, softmax"
        f"{dropout}",
        "input": f"{run.model.backbone.image_size} px, bilinear, half-pixel centres, no antialiasing; "
        f"scaling {resolve_scaling(config.data.scaling, config.backbone)}",
        "train metrics": "running mean over the epoch's images; epoch 0 in inference mode, before training"
        + (_WEIGHTED if config.class_weight != "none" else ""),
        "augmentation": ", ".join(on) or "none",
        "class weights": config.class_weight,
        "duplicates": "dropped after the split" if config.data.deduplicate else "kept",
        "labels": "FER+, the most votes" if config.data.labels else _WHOSE.get(run.dataset.kind, "FER2013's"),
        "compute": ", ".join(filter(None, compute)),
        "seeds": f"seed {seeds} (head, order, dropout, augmentation), "
        f"init_seed {config.init_seed} (backbone)",
    }


def _model(run: runs.Run, feature_rms: float | None) -> dict[str, Any]:
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


def _versions() -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = None
    return result


def _print(
    run: runs.Run,
    history: list[report.History],
    lanes: Sequence[dict[str, Any]],
    groups: dict[float, list[int]],
) -> None:
    print(f"\n{run.title}\n")
    if len(lanes) == 1:
        test = lanes[0]["test"]
        print(f"{report.epoch_table(history[0])}\n")
        print(f"test: accuracy {test['accuracy']:.4f}, macro F1 {test['macro_f1']:.4f}\n")
        print(f"{report.class_table(test)}\n")
    else:
        names = [lane.name for lane in run.lanes]
        print(f"{report.lanes_table(names, lanes, list(groups.values()))}\n")
    for note in (*run.dataset.notes, *run.split.notes):
        print(f"NOTE: {note}")
