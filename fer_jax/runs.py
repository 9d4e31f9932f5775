"""A run: what it is made of, and the directory that is its own (run.json)."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import weights_conversion
from fer_jax import compilation, process, report
from fer_jax.data.dataset import FaceDataset
from fer_jax.data.loading import DRAWN
from fer_jax.data.splits import Split
from fer_jax.errors import InputError
from fer_jax.files import is_utf8, locked, writing_to
from fer_jax.initialisation import Init
from fer_jax.models.classifier import Classifier

LOCK = ".lock"


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
    if not is_utf8(workdir.absolute()):
        raise InputError(f"{workdir}: expected a path in UTF-8, as Orbax does; choose another --workdir")
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
    with locked(workdir / LOCK, busy=f"{workdir}: another process is at work here"):
        check_workdir(workdir, run)
        path = workdir / "run.json"
        known = json.loads(path.read_text(encoding="utf-8")).get("revisions", []) if path.exists() else []
        earlier = [name for name in known if name != process.git_revision()]
        with writing_to(path):
            report.write_json(path, _identity(run) | {"revisions": [*earlier, process.git_revision()]})
        yield earlier


def _identity(run: Run) -> dict[str, Any]:
    """What must not change between the starts of a run."""
    return {
        "config": _config(run.config),
        "init": run.init.name,
        "weights_sha256": run.init.weights and run.init.weights["weights_sha256"],
        "data_sha256": run.dataset.sha256,
        "data": faces_of(run.dataset),
        "split_sha256": run.split.sha256,
        "float32": compilation.precision() or None,  # None on CPU
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


def faces_of(dataset: FaceDataset) -> dict[str, Any]:
    """What the model has to know of the faces that it is trained on."""
    return {"class_names": dataset.class_names, "side": dataset.side, "colour": dataset.channels == 3}
