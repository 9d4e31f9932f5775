"""What a run leaves in its directory: who it is (run.json), results.json, the figures, the last words."""

import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import weights_conversion
from fer_jax import metrics, models, report, saved_model
from fer_jax.data import splits
from fer_jax.data.dataset import FaceDataset
from fer_jax.data.loading import DRAWN
from fer_jax.data.preprocessing import resolve_scaling
from fer_jax.data.splits import Split
from fer_jax.errors import InputError
from fer_jax.files import writing_to
from fer_jax.initialisation import Init
from fer_jax.models.classifier import Classifier
from fer_jax.process import cpu_cores, processor

PACKAGES = (
    "fer-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy",
    "scikit-learn",
)  # fmt: skip


LOCK = ".lock"
_WEIGHTED = (
    "; from epoch 1 on the train loss is weighted by class, that of epoch 0 and every validation loss are not"
)
_WHOSE = {DRAWN: "what was drawn", "own": "the folders' names"}  # whose labels, by the data's kind


@dataclasses.dataclass(frozen=True)
class Lane:
    """One of the trainings that a run does at once."""

    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        return f"learning rate {self.learning_rate:g}, seed {self.seed}"


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
    def lanes(self) -> tuple[Lane, ...]:
        """Every seed with every learning rate, the seeds of one rate together."""
        rates, seeds = self.config.optimizer.learning_rate, range(self.config.seeds)
        return tuple(Lane(self.config.seed + i, float(rate)) for rate in rates for i in seeds)

    @property
    def title(self) -> str:
        """What every figure is headed with."""
        config = self.config
        sources = {DRAWN: "drawn faces", "own": f"own data {self.dataset.name}"}
        source = sources.get(self.dataset.kind, "FER2013")
        source += " with FER+ labels" if config.data.labels else ""
        source += f", {len(self.dataset):,} faces" if config.data.limit else ""
        network = (
            f"{weights_conversion.title(config.backbone, config.alpha)} at {self.model.backbone.image_size}"
        )
        title = f"{network}, {self.init.name}, on {source} (split {self.split.name})"
        if self.init.weights and self.init.weights["initialised"]:
            missing = ", ".join(entry["tensor"] for entry in self.init.weights["initialised"])
            title += f", {missing} not pretrained"
        return title


def check_start(workdir: Path, config: Any) -> None:
    """As `check_workdir`, by what is known before the data are read: whether there can be a directory at that
    place, and the configuration."""
    place = next(path for path in (workdir, *workdir.absolute().parents) if os.path.exists(path))
    longest = max(len(os.fsencode(part)) for part in workdir.parts or (".",))
    if not place.is_dir() or not os.access(place, os.W_OK) or longest > os.pathconf(place, "PC_NAME_MAX"):
        raise InputError(f"{workdir}: cannot be made or written; choose another --workdir")
    with writing_to(workdir):
        _check_identity(workdir, {"config": _config(config)})


def check_workdir(workdir: Path, run: Run) -> None:
    """Raises InputError where the directory holds another run, or files that are no run's."""
    _check_identity(workdir, _identity(run))


def _check_identity(workdir: Path, identity: dict[str, Any]) -> None:
    path, identity = workdir / "run.json", json.loads(json.dumps(identity))
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(old, dict):
                raise ValueError("no fields")
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); choose another --workdir") from error
        if isinstance(old.get("config"), dict):
            old["config"].pop("eval_batch_size", None)  # older revisions have it
        differences = _differences({key: old.get(key) for key in identity}, identity)
        if differences:
            found = f"holds another run, which differs in {'; '.join(differences)}"
            raise InputError(f"{workdir}: {found}; choose another --workdir")
    elif workdir.is_dir() and any(not _is_ours(entry.name) for entry in workdir.iterdir()):
        raise InputError(f"{workdir}: is not empty and holds no run (no run.json); choose another --workdir")


def _is_ours(name: str) -> bool:
    """Whether a start that was killed may have left a file of this name before it left run.json."""
    return name == LOCK or (name.startswith(".run.") and name.endswith(".tmp.json"))


@contextlib.contextmanager
def claimed(workdir: Path, run: Run) -> Iterator[list[str | None]]:
    """Makes the directory this run's, and keeps other processes out while it lasts.

    Yields:
      the revisions, other than this one, of the code that has worked on the run before.

    Raises:
      InputError: as `check_workdir`, or another process is at work there, or it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("w")
    except OSError as error:
        raise InputError(f"{workdir}: cannot be made ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{workdir}: another process is at work here") from error
        except OSError as error:
            raise InputError(f"{workdir}: cannot be locked ({error.strerror})") from error
        check_workdir(workdir, run)
        path = workdir / "run.json"
        known = json.loads(path.read_text(encoding="utf-8")).get("revisions", []) if path.exists() else []
        earlier = [name for name in known if name != git_revision()]
        with writing_to(path):
            report.write_json(path, _identity(run) | {"revisions": [*earlier, git_revision()]})
        yield earlier


def _identity(run: Run) -> dict[str, Any]:
    """What must not change between the starts of a run."""
    return {
        "config": _config(run.config),
        "init": run.init.name,
        "weights_sha256": run.init.weights and run.init.weights["weights_sha256"],
        "data_sha256": run.dataset.sha256,
        "data": _faces(run.dataset),
        "split_sha256": run.split.sha256,
        "float32": _precision() or None,  # None on CPU
    }


def _config(config: Any) -> dict[str, Any]:
    fields: dict[str, Any] = config.to_dict()
    # These change neither the checkpoints nor, but for rounding, a result.
    del fields["checkpoint_minutes"], fields["eval_batch_size"]
    del fields["features"]["max_gb"], fields["features"]["memory_gb"]
    return fields


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            d for key in keys for d in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name} ({old} there, {new} here)"]


def write_history(workdir: Path, lanes: Sequence[Lane], history: list[report.History]) -> None:
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
    run: Run,
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
    _print(run, history, lanes, groups)
    for rate, group in groups.items():
        files += _figures(workdir, run, rate, group, history, lanes, probabilities)
    for name in sorted(files):
        print(f"  {workdir / name}")
    return values


def _tests(run: Run, predictions: np.ndarray) -> list[dict[str, Any]]:
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


def model_spec(run: Run, lane: Lane, final: Mapping[str, float]) -> saved_model.Spec:
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
    run: Run,
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


def _provenance(run: Run) -> dict[str, Any]:
    config, dataset = run.config, run.dataset
    return {
        "config": config.to_dict(),
        "readings": _readings(run),
        "init": {"name": run.init.name, "reason": run.init.reason, "weights": run.init.weights},
        "data": {
            "kind": dataset.kind,
            "source": dataset.name,
            "sha256": dataset.sha256,
            **_faces(dataset),
            "notes": [*dataset.notes, *run.split.notes],
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
            "processor": processor(),
            "count": jax.device_count(),
            "cpu_cores": cpu_cores(),
        },
    }


def _faces(dataset: FaceDataset) -> dict[str, Any]:
    """What the model has to know of the faces that it is trained on."""
    return {"class_names": dataset.class_names, "side": dataset.side, "colour": dataset.channels == 3}


def _readings(run: Run) -> dict[str, str]:
    """How this run reads what the paper leaves open; none of it is the paper's own word."""
    config, head = run.config, run.model.head
    adam = config.optimizer
    rates = " and ".join(f"{rate:g}" for rate in adam.learning_rate)
    seeds = " to ".join(str(seed) for seed in sorted({run.lanes[0].seed, run.lanes[-1].seed}))
    frozen = {
        "pretrained": f"freeze.mode {config.freeze.mode}",
        "random": f"random backbone, freeze.mode {config.freeze.mode}, as for pretrained weights",
        "scratch": "random backbone, nothing frozen",
    }
    on = [f"{name} {value}" for name, value in config.augment.items() if value]
    hidden = "".join(f", dense {units}" for units in head.hidden)
    compute = [f"backbone in {config.compute_dtype}, head and statistics in float32", _precision()]
    return {
        "split": f"{run.split.name}, random_state {config.data.split_seed}",
        "freezing": frozen[run.init.name],
        "optimizer": f"Keras's Adam, learning rate {rates}, betas {adam.beta_1} {adam.beta_2}, "
        f"epsilon {adam.epsilon} on the uncorrected second moment",
        "batch": f"{config.batch_size}, last smaller batch {'dropped' if config.drop_last else 'trained'}",
        "head": f"{'global average pooling' if head.pooling == 'avg' else 'flatten'}"
        f"{', batch normalisation' if head.batch_norm else ''}{hidden}, dense {head.classes}, softmax",
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


def _precision() -> str:
    """How an accelerator multiplies float32, in words: by default in TF32 on a GPU, bfloat16 on a TPU; empty
    on CPU."""
    if jax.default_backend() == "cpu":
        return ""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return f"products at JAX's {precision or 'default'} precision"


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


@functools.cache
def git_revision() -> str | None:
    """The commit of the checkout this runs from, "-dirty" where tracked files differ; None elsewhere."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed below another project, it is not of that
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = None
    return result


def _print(
    run: Run,
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
