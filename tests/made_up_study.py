"""Results of cells with histories that are made up, so that their verdicts are known."""

import json

from benchmarks.study import cells
from benchmarks.study.results import Group
from fer_jax import metrics
from fer_jax.data.dataset import CLASS_NAMES

PARAMETERS = {"openface": 3_743_280, "vggface": 145_002_878, "resnet50": 23_587_712, "mobilenet": 3_228_864}
FIT_SECONDS = {"openface": 10.0, "mobilenet": 20.0, "resnet50": 40.0, "vggface": 80.0}
RECALL = {
    "happy": 0.9,
    "surprise": 0.8,
    "angry": 0.7,
    "fear": 0.6,
    "neutral": 0.5,
    "sad": 0.4,
    "disgust": 0.1,
}


def curve(first, last, epochs=20):
    """Straight from `first` at epoch 0 to `last`."""
    return [first + (last - first) * epoch / epochs for epoch in range(epochs + 1)]


def saturating(first, last, epochs=20):
    """Reaches `last` after half of the epochs and stays."""
    return [first + (last - first) * min(1.0, 2 * epoch / epochs) for epoch in range(epochs + 1)]


def run(setting, init, seed, train, val, recall=None, degenerate=False, missing=()):
    """The content of a result file; `train` and `val` are accuracies from epoch 0."""
    history = [
        {
            "epoch": i,
            "train_loss": 2 - t,
            "train_accuracy": t,
            "val_loss": 2 - v,
            "val_accuracy": v,
            "seconds": FIT_SECONDS[setting.backbone] / (len(train) - 1),
        }
        for i, (t, v) in enumerate(zip(train, val, strict=True))
    ]
    recall = recall or RECALL
    per_class = {name: {"precision": r, "recall": r, "f1": r, "support": 100} for name, r in recall.items()}
    counts = {
        part: dict.fromkeys(CLASS_NAMES, n) for part, n in (("train", 300), ("validation", 50), ("test", 100))
    }
    weights = {"initialised": [{"tensor": t} for t in missing], "weights_sha256": "0" * 64}
    return {
        "spec": cells.Cell(setting, init, seed).spec(),
        "title": "made up",
        "readings": {"split": setting.split},
        "init": {"name": init, "weights": weights if init == "pretrained" else None},
        "data": {"kind": "csv", "sha256": "1" * 64},
        "split": {"name": setting.split, "sha256_of_int64_indices": dict.fromkeys(counts, "2" * 64)},
        "git_revision": "3" * 40,
        "versions": {"jax": "0"},
        "device": {"kind": "cpu", "cpu_cores": 2},
        "model": {
            "backbone_parameters": PARAMETERS[setting.backbone],
            "backbone_parameters_that_learn": 1000,
        },
        **metrics.rates(history),
        "final": history[-1],
        "test": {
            "accuracy": val[-1],
            "macro_f1": val[-1],
            "per_class": per_class,
            "class_names": list(CLASS_NAMES),
            "confusion": [[round(100 * (i == j)) for j in range(7)] for i in range(7)],
            "degenerate": degenerate,
        },
        "history": history,
        "class_counts": counts,
        "fit_seconds": FIT_SECONDS[setting.backbone],
        "predict_images_per_s": {"openface": 400.0, "mobilenet": 200.0, "resnet50": 40.0, "vggface": 8.0}[
            setting.backbone
        ],
    }


def group(backbone, init, train, val, seeds=3, noise=0.002, **options):
    """A group whose runs differ by `noise` from seed to seed."""
    fields = {
        key: options.pop(key)
        for key in ("alpha", "split", "variant", "limit", "epochs", "data")
        if key in options
    }
    size = options.pop("image_size", 96 if backbone == "openface" else 224)
    setting = cells.Setting(backbone, image_size=size, **fields)
    runs = tuple(
        run(setting, init, s, [t + noise * s for t in train], [v + noise * s for v in val], **options)
        for s in range(seeds)
    )
    return Group(setting, init, tuple(range(seeds)), runs)


def write(folder, groups):
    """The result files of groups."""
    folder.mkdir(parents=True, exist_ok=True)
    for g in groups:
        for seed, content in zip(g.seeds, g.runs, strict=True):
            (folder / f"{cells.Cell(g.setting, g.init, seed).name}.json").write_text(json.dumps(content))
