"""The whole loop on a small csv: what a run leaves, and that a stopped run ends as if never stopped."""

import csv
import errno
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import default
from fer_jax import (
    compilation,
    forward,
    initialisation,
    metrics,
    models,
    process,
    report,
    runs,
    saved_model,
    train,
)
from fer_jax import results as run_results
from fer_jax.checkpoint import Checkpoints
from fer_jax.data import loading, preprocessing, splits
from fer_jax.data.dataset import FaceDataset
from fer_jax.errors import InputError, exit_on_input_error
from fer_jax.optimizer import categorical_crossentropy

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {
    "backbone": "mobilenet",
    "alpha": 0.25,
    "image_size": 32,
    "init": "random",
    "epochs": 2,
    "batch_size": 8,
    "eval_batch_size": 64,
}


def config_of(path: Path, **options) -> ConfigDict:
    config = default.get_config()
    config.update(OPTIONS | options)
    config.data.path = str(path)
    return config


@pytest.mark.parametrize("place", ["a file", "below a file", "another run", "a long name", "no UTF-8"])
def test_a_workdir_that_cannot_be_used_is_named_before_the_data_are_read(
    place, tmp_path, small_csv, monkeypatch
):
    def read(*arguments):
        raise AssertionError("the data were read")

    monkeypatch.setattr(loading, "load", read)
    workdir = tmp_path / "run"
    if place == "another run":
        workdir.mkdir()
        there = config_of(small_csv, epochs=3).to_dict()
        del there["checkpoint_minutes"], there["features"]["max_gb"], there["features"]["memory_gb"]
        (workdir / "run.json").write_text(json.dumps({"config": there}))
        words = r"another run, which differs in config\.epochs \(3 there, 2 here\); choose another --workdir"
    elif place == "a long name":
        workdir = tmp_path / "not there" / ("a" * 300)
        words = "cannot be made or written; choose another --workdir"
    elif place == "no UTF-8":
        workdir = tmp_path / os.fsdecode(b"run \xe9")
        words = "expected a path in UTF-8, as Orbax does; choose another --workdir"
    else:
        workdir.write_text("")
        words = "cannot be made or written; choose another --workdir"
    with pytest.raises(InputError, match=words):
        train.train_and_evaluate(config_of(small_csv), workdir / "below" if place[0] == "b" else workdir)


def test_ctrl_c_ends_the_reading_of_the_data(tmp_path, small_csv, monkeypatch):
    ended = []

    def read(*arguments):
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)  # a thread that no signal reaches would read on
        except KeyboardInterrupt:
            ended.append(True)
            raise

    monkeypatch.setattr(loading, "load", read)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(config_of(small_csv), tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended


def history_of(workdir: Path) -> list[dict[str, str]]:
    with open(workdir / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def checkpoint_of(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, by its path in the tree."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        restored = manager.restore(
            manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )
    leaves = jax.tree_util.tree_leaves_with_path(restored.state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def finished(small_csv, tmp_path_factory):
    """A run of two epochs that nothing stopped."""
    workdir = tmp_path_factory.mktemp("run") / "finished"
    os.environ["FER_JAX_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    return workdir, train.train_and_evaluate(config_of(small_csv), workdir)


def test_history_has_a_row_an_epoch_from_epoch_zero(finished):
    workdir, _ = finished
    with open(workdir / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == report.HISTORY_COLUMNS
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert abs(float(rows[0]["train_loss"]) - np.log(7)) < 0.1, "a fresh head knows nothing"
    assert rows[1]["train_loss"] != rows[2]["train_loss"]


def test_results_hold_all_that_a_reader_needs(finished):
    workdir, returned = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert results["split"]["sizes"] == {"train": 140, "validation": 20, "test": 40}
    assert set(results["split"]["sha256_of_int64_indices"]) == {"train", "validation", "test"}
    assert len(results["data"]["sha256"]) == 64
    assert results["init"]["name"] == "random"
    assert results["model"]["layers_that_learn"] == [
        "conv_dw_13_relu",
        "conv_pw_13",
        "conv_pw_13_bn",
        "conv_pw_13_relu",
    ]
    assert results["model"]["frozen_part"].startswith(
        "computed once an image, up to conv_dw_13_relu (1, 1, 256)"
    )
    assert 0 < results["model"]["initial_feature_rms"] < 1e-6, "a frozen random MobileNet is degenerate"
    assert results["test"]["degenerate"] == (
        len(set(np.nonzero(np.sum(results["test"]["confusion"], 0))[0])) == 1
    )
    assert np.sum(results["test"]["confusion"]) == 40
    assert set(results["mcr"]) == set(results["mofr"]) == {"accuracy", "loss"}
    assert {"from_epoch_0", "from_epoch_1"} <= set(results["mcr"]["accuracy"])
    for key in ("config", "readings", "git_revision", "versions", "device", "initial"):
        assert key in results
    assert results["device"]["processor"] == process.processor()
    history = history_of(workdir)
    expected = (float(history[2]["train_loss"]) - float(history[0]["train_loss"])) / 2
    assert results["mcr"]["loss"]["from_epoch_0"] == pytest.approx(expected)


def test_figures_events_and_checkpoints_are_written(finished):
    workdir, _ = finished
    for name in ("history.png", "confusion.png", "faces.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").glob("events*"))
    assert not [path for path in workdir.iterdir() if "tmp" in path.name]
    assert len(list((workdir / "checkpoints").iterdir())) >= 1


def test_the_saved_model_scores_the_test_faces_as_the_run_did(finished, small_csv):
    workdir, results = finished
    model = saved_model.load(workdir)
    assert model.spec.provenance["final"] == results["final"]
    dataset, split, _ = loading.load(config_of(small_csv).data, OPTIONS["image_size"])

    def logits_of(rows: np.ndarray) -> jax.Array:
        images = preprocessing.prepare(dataset.images[rows], model.spec.image_size, model.spec.scaling)
        return model.spec.module().apply(model.variables, images)

    losses = categorical_crossentropy(logits_of(split.validation), dataset.labels[split.validation])
    assert losses.mean() == pytest.approx(results["final"]["val_loss"], rel=1e-5)
    predicted = np.argmax(logits_of(split.test), -1)
    test = metrics.classification(dataset.labels[split.test], predicted, model.spec.class_names)
    assert test["confusion"] == results["test"]["confusion"]


def test_a_finished_run_started_again_gives_the_same_results(finished, small_csv):
    workdir, results = finished
    again = train.train_and_evaluate(config_of(small_csv), workdir)
    assert again == results


def start(small_csv: Path, workdir: Path, cache: str) -> subprocess.Popen:
    flags = [f"--config.{name}={value}" for name, value in OPTIONS.items()]
    flags += [f"--config.data.path={small_csv}", "--config.checkpoint_minutes=0.0", f"--workdir={workdir}"]
    command = [sys.executable, "-m", "fer_jax.main", f"--config={ROOT / 'configs/default.py'}", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"FER_JAX_CACHE": cache}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_run_killed_in_an_epoch_ends_bit_identical_to_one_never_stopped(finished, small_csv, tmp_path):
    whole, _ = finished
    workdir, cache = tmp_path / "killed", os.environ["FER_JAX_CACHE"]
    process = start(small_csv, workdir, cache)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(p.name) for p in workdir.glob("checkpoints/[0-9]*") if p.name.isdigit()]
        if any(step % 18 for step in steps):  # 140 images are 18 steps an epoch: this one is in between
            break
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "results.json").exists(), "killed before its end"

    again = start(small_csv, workdir, cache)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "going on from epoch" in errors
    assert history_of(workdir) == history_of(whole)
    expected, got = checkpoint_of(whole), checkpoint_of(workdir)
    assert expected.keys() == got.keys()
    for path, value in expected.items():
        assert value.tobytes() == got[path].tobytes(), path
    assert list(Path(cache, "compiled").glob("*train_steps*")), "the command keeps compiled programs"


def test_a_directory_with_another_run_is_refused_naming_the_difference(finished, small_csv):
    workdir, _ = finished
    before = sorted(path.name for path in workdir.iterdir())
    with pytest.raises(InputError, match=r"another run.*config\.seed \(0 there, 1 here\)"):
        train.train_and_evaluate(config_of(small_csv, seed=1), workdir)
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_a_run_is_not_gone_on_with_where_float32_is_multiplied_otherwise(finished, small_csv, monkeypatch):
    monkeypatch.setattr(compilation, "precision", lambda: "products at JAX's highest precision")
    with pytest.raises(InputError, match=r"float32 \(None there, products at JAX's highest precision here"):
        train.train_and_evaluate(config_of(small_csv), finished[0])


def test_a_larger_cache_and_other_checkpoint_times_are_no_other_run(finished, small_csv):
    workdir, results = finished
    config = config_of(small_csv, checkpoint_minutes=1.0)
    config.features.max_gb = 50.0
    assert train.train_and_evaluate(config, workdir)["final"] == results["final"]


def test_a_run_begun_with_another_evaluation_batch_goes_on(finished, small_csv, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    there = json.loads((workdir / "run.json").read_text())
    there["config"]["eval_batch_size"] = 128  # compared by an older revision
    (workdir / "run.json").write_text(json.dumps(there))
    again = train.train_and_evaluate(config_of(small_csv, eval_batch_size=32), workdir)
    assert again["final"] == finished[1]["final"]


def test_a_run_with_an_option_that_is_no_longer_there_is_another(finished, small_csv, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    there = json.loads((workdir / "run.json").read_text())
    there["config"]["warmup"] = 5
    (workdir / "run.json").write_text(json.dumps(there))
    with pytest.raises(InputError, match=r"another run.*config\.warmup \(5 there, None here\)"):
        train.train_and_evaluate(config_of(small_csv), workdir)


def test_float64_is_refused_before_anything_is_read(small_csv, tmp_path):
    with jax.enable_x64(True), pytest.raises(InputError, match="JAX_ENABLE_X64: a run computes in float32"):
        train.train_and_evaluate(config_of(small_csv), tmp_path / "run")
    assert not (tmp_path / "run").exists()


IGNORED = [
    ({"init": "random", "weights": "mine"}, "weights: goes with init auto or pretrained, got init random"),
    ({"init": "scratch", "weights": "mine"}, "weights: goes with init auto or pretrained, got init scratch"),
    (
        {"init": "scratch", "freeze": {"mode": "all"}},
        "freeze.mode: all goes with init auto, pretrained or random, got init scratch",
    ),
    (
        {"freeze": {"mode": "all", "last": 8}},
        "freeze.last: goes with frozen layers and freeze.mode last, got freeze.mode all",
    ),
    (
        {"init": "scratch", "freeze": {"last": 8}},
        "freeze.last: goes with frozen layers and freeze.mode last, got init scratch",
    ),
]


@pytest.mark.parametrize(("options", "words"), IGNORED)
def test_a_field_that_would_change_nothing_is_refused_but_in_a_run_that_was_begun_with_it(
    options, words, small_csv, tmp_path, monkeypatch
):
    def read(*arguments):
        raise FileNotFoundError("the data are read")

    monkeypatch.setattr(loading, "load", read)
    config = config_of(small_csv, **options)
    with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
        train.train_and_evaluate(config, tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"config": runs._config(config)}))
    with pytest.raises(FileNotFoundError, match="the data are read"):
        train.train_and_evaluate(config, tmp_path)


def test_an_error_before_training_leaves_no_directory(small_csv, tmp_path):
    config = config_of(small_csv, init_seed=9)
    config.features.max_gb = 1e-9
    with pytest.raises(InputError, match="max_gb"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_where_another_process_is_at_work_is_refused(finished, small_csv):
    workdir, _ = finished
    with open(workdir / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            train.train_and_evaluate(config_of(small_csv), workdir)


def test_a_damaged_run_json_is_an_error_naming_it(small_csv, tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        train.train_and_evaluate(config_of(small_csv), tmp_path)


def test_what_a_killed_start_left_before_run_json_is_no_other_s_file(small_csv, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.123.tmp.json").touch()
    runs.check_start(tmp_path, config_of(small_csv))


def test_results_name_the_revisions_that_worked_on_the_run_before(finished, small_csv, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    here, other = process.git_revision(), "7" * 40
    identity = json.loads(path.read_text())
    assert identity["revisions"] == [here]
    assert finished[1]["earlier_revisions"] == []
    path.write_text(json.dumps(identity | {"revisions": [other, here]}))
    assert train.train_and_evaluate(config_of(small_csv), tmp_path / "run")["earlier_revisions"] == [other]
    assert json.loads(path.read_text())["revisions"] == [other, here]


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_delete(finished, small_csv, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damage")
    with pytest.raises(InputError, match=r"/checkpoints: cannot be restored \(.*\); if damaged, delete it"):
        train.train_and_evaluate(config_of(small_csv), tmp_path / "run")


def test_a_disk_that_fills_up_while_a_run_writes_is_an_error_in_a_line(
    finished, small_csv, tmp_path, monkeypatch
):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.copytree(finished[0], tmp_path / "run")
    monkeypatch.setattr(report, "write_history_csv", full)
    with pytest.raises(InputError, match=r"run: cannot be written \(No space left on device\)"):
        train.train_and_evaluate(config_of(small_csv), tmp_path / "run")


def test_a_disk_that_is_full_when_a_run_claims_its_directory_is_an_error_in_a_line(
    small_csv, tmp_path, monkeypatch
):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report, "write_json", full)
    with pytest.raises(InputError, match=r"run\.json: cannot be written \(No space left on device\)"):
        train.train_and_evaluate(config_of(small_csv), tmp_path / "run")


def test_a_training_that_diverges_says_so(small_csv, tmp_path, caplog):
    config = config_of(small_csv, epochs=1)
    config.optimizer.learning_rate = (1e38,)
    config.head.batch_norm = False
    train.train_and_evaluate(config, tmp_path / "run")
    assert "NOTE: the training diverged" in caplog.text
    with pytest.raises(InputError, match="diverged"):
        saved_model.load(tmp_path / "run")


def test_of_several_lanes_a_diverged_one_is_not_the_model_whatever_its_accuracy(
    tmp_path, monkeypatch, caplog
):
    saved = []
    monkeypatch.setattr(run_results, "model_spec", lambda run, lane, final: final)
    monkeypatch.setattr(saved_model, "save", lambda path, spec, trained: saved.append((spec, trained)))
    lanes = (runs.Lane(0, 1e-3), runs.Lane(0, 1e30))
    rows = [{"val_loss": 0.7, "val_accuracy": 0.3}, {"val_loss": math.nan, "val_accuracy": 0.6}]
    start = {"params": {"w": np.zeros(1)}, "batch_stats": {}}
    state = SimpleNamespace(params={"w": np.array([[1.0], [math.nan]])}, batch_stats={})
    train.save_model(tmp_path, SimpleNamespace(lanes=lanes), start, state, [[row] for row in rows])
    ((final, trained),) = saved
    assert (final, trained["params"]["w"].tolist()) == (rows[0], [1.0])
    assert f"NOTE: {lanes[1].name} diverged" in caplog.text
    assert lanes[0].name + " diverged" not in caplog.text


def test_layers_are_named_with_commas_on_the_command_line(small_csv):
    config = config_of(small_csv)
    config.freeze.mode, config.freeze.layers = "layers", ("conv1,conv1_bn",)
    init = initialisation.Init("random", "")
    _, learning = initialisation.build_classifier(config, init, 7)
    names = models.layer_names(initialisation.build_backbone(config))
    assert set(names) - learning == {"conv1", "conv1_bn"}
    config.freeze.layers = (1, 2)
    with pytest.raises(InputError, match="no layer named 1, 2"):
        initialisation.build_classifier(config, init, 7)


def test_dropping_the_last_batch_needs_a_whole_one(small_csv, tmp_path):
    with pytest.raises(InputError, match="140 training images make no batch of 256"):
        train.train_and_evaluate(config_of(small_csv, drop_last=True, batch_size=256), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_with_other_files_is_refused(small_csv, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds no run"):
        train.train_and_evaluate(config_of(small_csv), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_weights_of_a_name_that_no_file_can_have_are_weights_that_are_not_there(small_csv, tmp_path):
    config = config_of(small_csv, init="pretrained", weights="a" * 300)
    with pytest.raises(InputError, match="no converted weights in aaa"):
        train.train_and_evaluate(config, tmp_path / "run")


def test_pretrained_without_weights_says_how_to_make_them(small_csv, tmp_path):
    mine = tmp_path / "mine"
    with pytest.raises(InputError, match=r"in .*mine; .*mobilenet --alpha=0\.25 --download --output=.*mine "):
        train.train_and_evaluate(config_of(small_csv, init="pretrained", weights=str(mine)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not mine.exists()


def test_pretrained_offline_says_what_to_get_and_where_to_put_it(small_csv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"mobilenet_2_5_224_tf_no_top\.h5 could not be downloaded: https://"
    ) as error:
        train.train_and_evaluate(config_of(small_csv, init="pretrained"), tmp_path / "run")
    assert "get it and put it at " in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("init", ["auto", "pretrained"])
def test_published_weights_are_downloaded_where_none_are(init, shared, tmp_path, monkeypatch, caplog):
    from fer_jax import initialisation

    # A file that has been put into the cache by hand takes the same road as one from an address.
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache/published").mkdir(parents=True)
    file = shared / "weights" / "mobilenet_2_5_224_tf_no_top.h5"
    (tmp_path / "cache/published" / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger="fer_jax")
    found = initialisation.choose(config_of(tmp_path, init=init))
    assert found.name == "pretrained"
    assert found.weights["licence"] == "Apache-2.0 (Google, Keras)"
    assert "licence: Apache-2.0 (Google, Keras)" in caplog.text
    assert (tmp_path / "weights/mobilenet_0.25/weights.safetensors").exists()


def test_auto_without_weights_is_scratch_and_says_so(small_csv, tmp_path, monkeypatch, caplog):
    from fer_jax import initialisation

    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", logger="fer_jax"):
        init = initialisation.choose(config_of(small_csv, init="auto"))
    assert init.name == "scratch"
    assert caplog.messages[-1].startswith("init: scratch (auto: no converted weights")


@pytest.mark.parametrize("init", ["auto", "pretrained"])
def test_a_width_that_was_not_published_is_scratch_for_auto_and_an_error_for_pretrained(
    init, tmp_path, monkeypatch, caplog
):
    from fer_jax import initialisation

    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger="fer_jax")
    config = config_of(tmp_path, init=init, alpha=0.33)
    reason = (
        "no converted weights in weights/mobilenet_0.33, and no weights of MobileNet alpha 0.33 were "
        "published, only 1, 0.75, 0.5, 0.25"
    )
    if init == "auto":
        assert initialisation.choose(config).name == "scratch"
        note, chosen = caplog.messages
        assert note.startswith(
            "NOTE: no pretrained weights can be had, so the whole network is trained from "
        )
        assert "--config.init=pretrained the run would end with an error" in note
        assert chosen == f"init: scratch (auto: {reason}; so nothing is frozen)"
    else:
        with pytest.raises(InputError, match=f"^init pretrained: {re.escape(reason)}$"):
            initialisation.choose(config)


def own_pictures(root: Path, parts: tuple[str, ...], count: int) -> Path:
    """Three classes with odd names, in colour and grey, of many sizes: ROOT/PART/CLASS/NUMBER.png."""
    rng = np.random.default_rng(0)
    for part in parts:
        for label, name in enumerate(("Äpfel & Birnen", "très fâché", "~")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                height, width = rng.integers(20, 80, 2)
                pixels = rng.integers(60 * label, 60 * label + 90, (height, width, 3), np.uint8)
                pixels = pixels[..., 0] if index % 3 == 0 else pixels
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


@pytest.mark.parametrize("options", [{"augment.flip": True}, {"init": "scratch"}])
def test_own_pictures_of_any_classes_sizes_and_colours_train_from_their_folder(options, tmp_path, shallow):
    config = config_of(own_pictures(tmp_path / "my pictures", ("",), 20), epochs=1)
    config.update_from_flattened_dict(options)
    results = train.train_and_evaluate(config, tmp_path / "run")
    names = ["très fâché", "~", "Äpfel & Birnen"]
    data = json.loads((tmp_path / "run/results.json").read_text())["data"]
    assert (data["kind"], data["class_names"], data["side"], data["colour"]) == ("own", names, 32, True)
    identity = json.loads((tmp_path / "run/run.json").read_text())
    assert identity["data"] == {"class_names": names, "side": 32, "colour": True}
    assert "on own data my pictures (split paper)" in results["title"]
    assert results["readings"]["labels"] == "the folders' names"
    assert results["split"]["sizes"] == {"train": 42, "validation": 6, "test": 12}
    assert results["test"]["class_names"] == names
    assert np.array(results["test"]["confusion"]).shape == (3, 3)
    assert abs(float(history_of(tmp_path / "run")[0]["train_loss"]) - np.log(3)) < 0.1
    assert np.isfinite(results["final"]["train_loss"])
    assert (tmp_path / "run/faces.png").exists()


def test_own_pictures_train_by_folder_and_another_side_is_another_run(tmp_path):
    root = own_pictures(tmp_path / "mine", ("train", "val", "test"), 6)
    config = config_of(root, epochs=1)
    config.data.update({"split": "official", "side": 24})
    results = train.train_and_evaluate(config, tmp_path / "run")
    assert results["split"]["sizes"] == {"train": 18, "validation": 18, "test": 18}
    assert results["data"]["side"] == 24
    assert results["data"]["notes"] == ["own data, not FER2013: images as RGB squares of 24 pixels"]
    config.data.side = 28
    with pytest.raises(InputError, match=r"another run.*config\.data\.side \(24 there, 28 here\)"):
        train.train_and_evaluate(config, tmp_path / "run")


def test_one_step_of_augmentation_class_weights_and_hidden_layers_runs(small_csv, tmp_path, shallow):
    config = config_of(small_csv, epochs=1, class_weight="balanced", init="scratch")
    config.head.hidden, config.head.dropout = (16, 8), 0.2
    config.augment.update({"flip": True, "rotation": 0.1, "shift": 0.1, "contrast": 0.1})
    results = train.train_and_evaluate(config, tmp_path / "run")
    assert "dense 16, dense 8, dense 7" in results["readings"]["head"]
    assert results["readings"]["augmentation"] == "contrast 0.1, flip True, rotation 0.1, shift 0.1"
    assert results["readings"]["class weights"] == "balanced"
    assert np.isfinite(results["final"]["train_loss"])


def test_checkpoints_keep_the_last_state_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    state = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": {"step": np.int32(7)}}
    progress = {"epoch": 1, "history": [{"train_loss": 0.1 + 0.2}]}
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.restore(state) is None
    checkpoints.save(1, jax.tree.map(lambda x: x * 0, state), {})
    checkpoints.save(2, state, progress)
    restored, told = checkpoints.restore(jax.tree.map(np.zeros_like, state))
    assert told == progress
    assert restored["a"].tobytes() == state["a"].tobytes()
    checkpoints.close()


def save_weights(directory: Path, alpha: float, image_size: int = 32) -> dict:
    """Converted weights as the converter stores them, of a freshly initialised MobileNet."""
    from weights_conversion import store

    module = models.build("mobilenet", alpha=alpha, image_size=image_size)
    variables = initialisation.random_variables(models.abstract_variables(module), 3, "backbone")
    fields = {
        "backbone": "mobilenet", "alpha": alpha, "include_top": False, "source_file": "file.h5",
        "source_sha256": "0" * 64, "keras_version": "3", "converted_at": "2022-01-01T00:00:00+00:00",
        "licence": "Apache-2.0",
        "initialised": [{"tensor": "conv_pw_13/kernel", "seed": 7, "initialiser": "glorot"}],
        "layers": 54, "tensors": 135, "parameters": 1,
    }  # fmt: skip
    store.save(directory, variables, fields)
    return variables


def test_weights_of_another_backbone_are_refused(small_csv, tmp_path):
    save_weights(tmp_path / "weights", alpha=0.25)
    for options in ({"alpha": 0.5}, {"backbone": "resnet50", "alpha": 1.0}):
        config = config_of(small_csv, init="pretrained", weights=str(tmp_path / "weights"), **options)
        with pytest.raises(InputError, match=r"are of mobilenet alpha 0\.25, expected"):
            train.train_and_evaluate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_auto_finds_converted_weights_and_tells_what_was_initialised(small_csv, tmp_path, monkeypatch):
    from fer_jax import initialisation

    monkeypatch.chdir(tmp_path)
    variables = save_weights(tmp_path / "weights/mobilenet_0.25", alpha=0.25)
    config = config_of(small_csv, init="auto")
    init = initialisation.choose(config)
    assert init.name == "pretrained"
    assert "conv_pw_13/kernel NOT from the file but initialised with seed 7" in init.reason
    model, _ = initialisation.build_classifier(config, init, 7)
    loaded = initialisation.initial_variables(config, init, model)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"]["backbone"], variables["params"])


def test_seeds_and_learning_rates_at_once_give_results_by_lane_and_their_mean(finished, small_csv, tmp_path):
    config = config_of(small_csv, seeds=2, epochs=1)
    config.optimizer.learning_rate = (1e-4, 1e-3)
    results = train.train_and_evaluate(config, tmp_path / "run")
    lanes = [(lane["learning_rate"], lane["seed"]) for lane in results["lanes"]]
    assert lanes == [(1e-4, 0), (1e-4, 1), (1e-3, 0), (1e-3, 1)]
    with open(tmp_path / "run/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == report.LANE_COLUMNS + report.HISTORY_COLUMNS
    assert [(row["learning_rate"], row["seed"], row["epoch"]) for row in rows[:4]] == [
        ("0.0001", "0", "0"), ("0.0001", "0", "1"), ("0.0001", "1", "0"), ("0.0001", "1", "1")
    ]  # fmt: skip
    _, single = finished
    alone = history_of(finished[0])[1]
    assert float(rows[1]["train_loss"]) == pytest.approx(float(alone["train_loss"]), rel=1e-5)
    for group, rate in zip(results["learning_rates"], (1e-4, 1e-3), strict=True):
        losses = [lane["final"]["val_loss"] for lane in results["lanes"] if lane["learning_rate"] == rate]
        assert group["seeds"] == [0, 1]
        assert group["mean"]["final"]["val_loss"] == pytest.approx(np.mean(losses))
        assert group["std"]["final"]["val_loss"] == pytest.approx(np.std(losses, ddof=1))
    assert set(single["mcr"]) == set(results["learning_rates"][0]["mean"]["mcr"])
    for kind in ("history", "confusion", "faces"):
        assert {path.name for path in (tmp_path / "run").glob(f"{kind}*.png")} == {
            f"{kind}_0.0001.png", f"{kind}_0.001.png"
        }  # fmt: skip


@pytest.mark.parametrize(("precision", "word"), [(None, "default"), ("highest", "highest")])
def test_a_run_on_an_accelerator_tells_how_float32_is_multiplied(precision, word, monkeypatch):
    assert compilation.precision() == ""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with jax.default_matmul_precision(precision):
        assert compilation.precision() == f"products at JAX's {word} precision"


def test_a_closed_stdout_ends_a_run_after_all_is_written(finished, small_csv, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run")
    figures = ("history.png", "confusion.png", "faces.png")
    for name in figures:
        (tmp_path / "run" / name).unlink()
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end, exit_on_input_error():
            train.train_and_evaluate(config_of(small_csv), tmp_path / "run")
    assert end.value.code == 141
    assert all((tmp_path / "run" / name).is_file() for name in figures)


def test_layers_that_there_are_not_are_named_before_weights_are_looked_for(small_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(initialisation, "choose", lambda _: pytest.fail("weights were looked for"))
    config = config_of(small_csv, init="pretrained")
    config.freeze.last = 999
    with pytest.raises(InputError, match=r"^freeze\.last: expected 0 to 85, got 999$"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_results_are_there_before_figures_are_drawn(finished, small_csv, tmp_path, monkeypatch):
    workdir, before = finished
    shutil.copytree(workdir, tmp_path / "run")
    for path in (tmp_path / "run/results.json", tmp_path / "run/history.csv"):
        path.unlink()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "plot_history", stop)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config_of(small_csv), tmp_path / "run")
    written = json.loads((tmp_path / "run/results.json").read_text())
    assert written["test"]["accuracy"] == before["test"]["accuracy"]
    assert (tmp_path / "run/history.csv").exists()


def test_faces_are_extracted_in_batches_of_one_size_whatever_that_of_training(monkeypatch):
    asked = []

    def compute(upstream, faces, key, batch_size, **_):
        asked.append(batch_size)
        return []

    monkeypatch.setattr(forward.features, "compute", compute)
    monkeypatch.setattr(forward.features, "make_key", lambda *_: {})
    found = SimpleNamespace(upstream=lambda *_: None)
    for batch_size, count in ((32, 1000), (1024, 1000), (1, 1000), (1024, 10)):
        views = [(np.zeros((count, 48, 48), np.uint8), "")]
        forward._features(config_of(Path(), batch_size=batch_size), found, 32, {}, {}, views)
    assert asked == [32, 32, 32, 10]


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_a_run_says_which_losses_class_weights_weigh(class_weight, small_csv):
    run = SimpleNamespace(
        config=config_of(small_csv, class_weight=class_weight),
        model=SimpleNamespace(
            head=SimpleNamespace(pooling="avg", batch_norm=True, hidden=(), classes=7),
            backbone=SimpleNamespace(image_size=32),
        ),
        init=SimpleNamespace(name="random"),
        lanes=(runs.Lane(0, 1e-4),),
        split=SimpleNamespace(name="paper"),
        dataset=SimpleNamespace(kind="csv"),
    )
    said = (
        "from epoch 1 on the train loss is weighted by class" in run_results._readings(run)["train metrics"]
    )
    assert said == (class_weight == "balanced")


def test_the_confusion_of_several_seeds_counts_each_test_image_once(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(report, "plot_history", lambda *_: None)
    monkeypatch.setattr(report, "plot_faces", lambda *_: None)
    monkeypatch.setattr(report, "plot_confusion", lambda matrix, *_: drawn.append(matrix))
    dataset = FaceDataset(
        np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 1, 1]), None, ("a", "b"), "own", "", ""
    )
    run = SimpleNamespace(
        config=ConfigDict({"optimizer": {"learning_rate": (1e-4,)}}),
        title="a test",
        lanes=(runs.Lane(0, 1e-4), runs.Lane(1, 1e-4)),
        dataset=dataset,
        split=SimpleNamespace(test=np.array([1, 2, 3])),
    )
    lanes = [{"test": {"confusion": confusion}} for confusion in ([[0, 0], [1, 2]], [[0, 0], [0, 3]])]
    chances = np.full((2, 3, 2), 0.5)
    run_results._figures(tmp_path, run, 1e-4, [0, 1], [[], []], lanes, chances)
    np.testing.assert_array_equal(drawn[0], [[0, 0], [0.5, 2.5]])


def test_the_revision_is_that_of_the_checkout_that_holds_the_code_and_of_no_other(tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    installed = tmp_path / ".venv" / "fer_jax" / "process.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    git("init")
    git("commit", "--allow-empty", "-m", "another project")
    monkeypatch.setattr(process, "__file__", str(installed))
    assert process.git_revision.__wrapped__() is None
    git("add", "--force", ".")
    git("commit", "-m", "this one")
    assert re.fullmatch("[0-9a-f]{40}", process.git_revision.__wrapped__())


def test_a_run_with_duplicates_is_measured_without_those_of_test_too():
    images = np.arange(6, dtype=np.uint8)[:, None, None] * np.eye(2, dtype=np.uint8)
    images[5] = images[4]  # a copy within test
    dataset = FaceDataset(images, np.array([0, 1, 0, 1, 1, 1], np.int32), None, ("a", "b"), "own", "", "")
    split = splits.Split(np.array([0]), np.array([1]), np.array([2, 3, 4, 5]), "own", ())
    config = ConfigDict({"data": {"deduplicate": False}})
    run = SimpleNamespace(dataset=dataset, split=split, config=config)
    found = run_results._tests(run, np.array([[0, 1, 1, 0], [0, 0, 0, 0]]))
    assert [lane["test"]["accuracy"] for lane in found] == [0.75, 0.25]
    short = [lane["test_without_duplicates"] for lane in found]
    assert [(lane["images"], lane["accuracy"]) for lane in short] == [(3, 1.0), (3, 1 / 3)]
    config.data.deduplicate = True
    assert "test_without_duplicates" not in run_results._tests(run, np.array([[0, 1, 1, 0]]))[0]
