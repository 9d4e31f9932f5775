"""Cells, the command, its report and the recommendations, with made-up results; one real cell."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import made_up_study as made_up
import numpy as np
import pytest
from made_up_study import curve, group
from PIL import Image

from benchmarks import convergence, identify, row_files
from benchmarks.study import cells, plan, product, result_files, results, run_cell, running
from benchmarks.work import TRAIN_IMAGES
from fer_jax.data import sources
from fer_jax.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backbones=alexnet"], "--backbones: unknown 'alexnet'"),
        (["--inits=auto"], "--inits: unknown 'auto'"),
        (["--seeds=0"], "--seeds: expected at least 1"),
        (["--limit=-1"], "--limit: expected at least 0"),
        (["--first_seed=4294967295", "--seeds=2", "--dry_run"], "--first_seed: seeds end at 2**32 - 1"),
        (["--variants=ferplus"], "--ferplus: no such file"),
        (["--split=half", "--dry_run"], "--split: unknown 'half'"),
        (["--data={empty}/nowhere", "--dry_run"], "nowhere: no such file or directory; expected faces as"),
        (["--data={empty}", "--dry_run"], ": no faces found; looked for"),
        (["--backbones=openface", "--image_size=224", "--dry_run"], "image_size: openface cannot take 224"),
        (["--split=half", "--report_only"], "--split: unknown 'half'"),
        (["--alpha=-1", "--dry_run"], "alpha"),
        (["--report_only", "--workdir={empty}/typo"], "no results in {empty}/typo/results"),
        (["--report_only", "--workdir=/proc/x"], "no results in /proc/x/results"),
        (["--backbones=openface", "--workdir={empty}/file"], "--workdir: {empty}/file is no directory"),
        (["--report_only", "--workdir={empty}/file"], "no results in {empty}/file/results"),
        (
            ["--backbones=openface", "--inits=random", "--workdir=/proc/x"],
            "/proc/x/results: cannot be written",
        ),
    ],
)
def test_bad_arguments_end_with_one_line_and_status_2(arguments, words, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        convergence.main([argument.format(empty=tmp_path) for argument in arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert words.format(empty=tmp_path) in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_results_on_other_data_are_refused_and_not_taken_for_done(small_csv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running.Study, "run", lambda *_: pytest.fail("ran"))
    made_up.write(tmp_path / "results", [group("openface", "random", curve(0.1, 0.3), curve(0.1, 0.3))])
    arguments = ["--backbones=openface", "--inits=random", f"--workdir={tmp_path}"]
    for more in ([f"--data={small_csv}"], [f"--data={small_csv}", "--dry_run"], ["--first_seed=3"]):
        with pytest.raises(SystemExit) as stop:
            convergence.main([*arguments, *more])
        assert stop.value.code == 2
        assert "was measured on other data" in capsys.readouterr().err


def test_a_cell_comes_back_from_its_spec_and_names_differ():
    settings = [
        cells.Setting("mobilenet", 0.75, 96, "official", "deduplicated", 5, 100, "my faces.zip", 1e-3),
        cells.Setting("mobilenet", 0.75, 96, "official", "deduplicated", 5, 100, "my faces.zip"),
        cells.Setting("mobilenet", 0.75, 96, "official", "deduplicated", 5, 100),
        cells.Setting("mobilenet", 0.75, 96, "official", "deduplicated", 5),
        cells.Setting("mobilenet", 0.75, 96, "official", "deduplicated"),
        cells.Setting("mobilenet", 0.75, 96, "official"),
        cells.Setting("mobilenet", 0.75, 96),
        cells.Setting("mobilenet", 0.75),
        cells.Setting("mobilenet"),
    ]
    made = [
        cells.Cell(setting, init, seed) for setting in settings for init in cells.INITS for seed in (0, 1)
    ]
    assert [cells.from_spec(json.loads(json.dumps(cell.spec()))) for cell in made] == made
    assert len({cell.name for cell in made}) == len(made)


def test_a_seed_is_that_of_head_and_backbone_and_variants_reach_the_configuration():
    cell = cells.Cell(cells.Setting("mobilenet", 0.25, 96, variant="procedure", limit=50), "random", 7)
    config = cells.configuration(cell)
    assert (config.seed, config.init_seed, config.data.limit, config.image_size) == (7, 7, 50, 96)
    assert (config.augment.flip, config.augment.rotation, config.class_weight) == (True, 0.1, "balanced")
    ferplus = cells.Cell(cells.Setting("openface", variant="ferplus"), "random", 0)
    assert cells.configuration(ferplus, ferplus="votes.csv").data.labels == "votes.csv"
    with pytest.raises(InputError, match="--ferplus=PATH"):
        cells.configuration(ferplus)


def test_a_dry_run_plans_time_memory_and_disk_and_names_what_lacks_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    arguments = [
        f"--workdir={tmp_path}",
        f"--weights={tmp_path}",
        "--backbones=openface",
        "--seeds=2",
        "--dry_run",
    ]
    assert convergence.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("weights not supplied: python -m weights_conversion.convert" in line for line in lines) == 2
    random = [line for line in lines if "_random_" in line]
    # 35,887 faces, 0.4 GFLOP each, at 75 GFLOP/s: 3 minutes for the features; 2,944 bytes of them a face.
    assert all(re.search(r"\b[34] min .* 0\.1 GB$", line) for line in random)
    assert "4 cells to run" in lines[-2]
    assert re.match(r"at most \d+\.\d GB of memory at a time, of \d+ here; \d+\.\d GB of disk", lines[-1])
    assert not list(tmp_path.iterdir())


def test_a_dry_run_warns_of_more_memory_and_disk_than_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    options = [f"--workdir={tmp_path}", "--backbones=openface", "--inits=random", "--seeds=1", "--dry_run"]
    for free, pages, warned in ((1e12, 1e9, []), (1e3, 1e3, ["memory than is here", "disk than is free"])):
        monkeypatch.setattr(convergence.shutil, "disk_usage", lambda _, f=free: types.SimpleNamespace(free=f))
        monkeypatch.setattr(convergence.os, "sysconf", lambda name, p=pages: p if "PHYS" in name else 4096)
        assert convergence.main(options) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "warning" in line] == [f"warning: that is more {x}" for x in warned]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(89, "89 s"), (120, "2 min"), (7200, "2.0 h"), (250_000, "69.4 h"), (4_000_000, "46 days")],
)
def test_a_time_is_told_in_a_unit_that_suits_its_length(seconds, words):
    assert convergence._duration(seconds) == words


@pytest.mark.parametrize(("machine", "flops"), [("throughput", 179.86e9), ("throughput_epyc", 96.533e9)])
def test_a_forecast_is_near_what_the_cells_and_full_steps_of_the_csv_took(machine, flops, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: flops)
    path = Path(row_files.__file__).parent / "results" / machine / "throughput.csv"
    rows = [row for row in row_files.Csv(path).rows if row["contender"] == "ours"]
    assert any(row["phase"] == "matmul" and float(row["gflop_per_s"]) * 1e9 == flops for row in rows)
    found = {}
    for row in rows:
        setting = cells.Setting(row["backbone"], float(row["alpha"]), int(row["image_size"]))
        if row["phase"] == "cell":
            cost = plan.forecast(cells.Cell(setting, "random", 0))
            found["random", setting.backbone] = cost.seconds / float(row["seconds"])
        if row["phase"] == "full_step":
            steps = setting.epochs * TRAIN_IMAGES / float(row["images_per_s"])
            found["scratch", setting.backbone] = (
                plan.forecast(cells.Cell(setting, "scratch", 0)).seconds / steps
            )
    assert len(found) >= 7
    assert all(0.9 < ratio < 1.5 for ratio in found.values()), found


@pytest.fixture
def own(tmp_path):
    """Class folders of two classes, 20 small colour images each."""
    rng = np.random.default_rng(0)
    for name in ("awake", "half asleep"):
        folder = tmp_path / "my faces" / name
        folder.mkdir(parents=True)
        for index in range(20):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "my faces"


def test_a_dry_run_on_one_s_own_data_counts_its_images(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    options = [
        f"--workdir={tmp_path}/study",
        "--backbones=openface",
        "--inits=random",
        "--seeds=1",
        "--dry_run",
    ]
    assert convergence.main([*options, f"--data={own}"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    # 40 images instead of 35,887: the start is all that takes time.
    assert re.match(r"openface_96_random_paper_plain_my-faces_seed0 .* 1[5-9] s .* 0\.0 GB$", line), line
    assert plan.faces_and_classes(sources.find(own)) == (40, 2)
    assert not (tmp_path / "study").exists()
    other = own.rename(own.with_name(os.fsdecode(b"fa\xe9ces")))
    assert convergence.main([*options, f"--data={other}"]) == 0
    assert "openface_96_random_paper_plain_fa-xe9ces_seed0 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--split=official", "--split=official: my faces has no train/ and test/"),
        ("--variants=ferplus", "--variants=ferplus: FER+'s labels go with FER2013's csv, not with my faces"),
    ],
)
def test_a_study_is_not_planned_with_what_the_faces_do_not_have(own, option, words, tmp_path, capsys):
    labels = tmp_path / "fer2013new.csv"
    labels.write_text("")
    options = [f"--workdir={tmp_path}/study", f"--data={own}", f"--ferplus={labels}", option, "--dry_run"]
    with pytest.raises(SystemExit) as stop:
        convergence.main(options)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {words}\n"


def test_jax_that_does_not_start_ends_a_plan_with_one_line_and_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(product.sys, "executable", "/bin/false")
    product.flops_per_second.cache_clear()
    options = [f"--workdir={tmp_path}", "--backbones=openface", "--inits=random", "--seeds=1", "--dry_run"]
    with pytest.raises(SystemExit) as stop:
        convergence.main(options)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: JAX does not start: status 1\n"


def test_a_forecast_counts_each_view_of_the_features_once_whatever_the_order_of_the_variants():
    setting = cells.Setting("mobilenet", 0.75)

    def forecasts(*variants):
        planned = [
            cells.Cell(dataclasses.replace(setting, variant=name), "pretrained", 0) for name in variants
        ]
        cost = plan.Forecast(100.0, 60.0, 1.0, 4.0, 3.0)
        none, twice = plan.Forecast(100.0, 0.0, 1.0, 1.0, 0.0), plan.Forecast(160.0, 120.0, 1.0, 7.0, 6.0)
        costs = [{"procedure": none, "flipped": twice}.get(name, cost) for name in variants]
        found = plan.without_repeats(list(zip(planned, costs, strict=True)))
        return [(cost.seconds, cost.disk_gb) for cost in found]

    assert forecasts("procedure", "plain", "balanced") == [(100, 1), (100, 4), (40, 1)]
    assert forecasts("plain", "flipped", "plain") == [(100, 4), (100, 4), (40, 1)]
    assert forecasts("flipped", "plain") == [(160, 7), (40, 1)]


def test_what_a_resumed_cell_took_does_not_shorten_the_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    runs = group("openface", "random", curve(0.1, 0.3), curve(0.1, 0.3)).runs

    def at_once(study, cell):
        study.finished[cell] = result_files.Finished(study.result(cell), runs[cell.seed])
        return ""

    monkeypatch.setattr(running.Study, "run", at_once)
    monkeypatch.setattr(convergence, "write_report", lambda _: None)
    begun = cells.Cell(cells.papers("openface"), "random", 0)
    (tmp_path / "cells" / begun.name).mkdir(parents=True)
    assert convergence.main([f"--workdir={tmp_path}", *STUDY, "--seeds=3"]) == 0
    left = re.findall(r"about (.*) left in all", capsys.readouterr().out)
    assert left[1] != "0 s" == left[2]  # the second ran as a whole, at once


def test_own_data_and_fer2013_stand_in_one_report_and_no_claim_is_judged_on_the_own(tmp_path, capsys):
    def of_two_classes(g):
        for content in g.runs:
            content["data"] = {"kind": "own", "sha256": "6" * 64}
            content["test"]["class_names"] = ["awake", "half asleep"]
            rates = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 10}
            content["test"]["per_class"] = dict.fromkeys(content["test"]["class_names"], rates)
            content["test"]["confusion"] = [[5, 5], [5, 5]]
            content["class_counts"] = {
                part: {"awake": 10, "half asleep": 10} for part in content["class_counts"]
            }
        return g

    runs = (curve(0.14, 0.35), curve(0.14, 0.33))
    groups = [
        group("openface", "random", *runs),
        of_two_classes(group("openface", "random", *runs, data="my faces")),
        of_two_classes(group("openface", "pretrained", *runs, data="my faces")),
    ]
    made_up.write(tmp_path / "results", groups)
    assert convergence.main([f"--workdir={tmp_path}", "--report_only"]) == 0
    markdown = (tmp_path / "report.md").read_text()
    assert "no claim of the paper is judged on them" in markdown
    assert "| openface at 96 on my faces, random |" in markdown
    assert "| my faces, split paper | awake | half asleep | all |" in markdown
    assert "the runs are on data of one's own, not FER2013" in markdown
    assert markdown.count("cannot be tested here |") == 9
    capsys.readouterr()
    assert identify.main([str(tmp_path), "--data=my faces"]) == 0
    out = capsys.readouterr().out
    assert "openface at 96 on my faces, pretrained" in out
    assert "the paper says" not in out
    assert identify.main([str(tmp_path)]) == 0
    assert "my faces" not in capsys.readouterr().out


def test_a_file_that_is_no_result_is_named(made, capsys):
    (made / "results" / "other.json").write_text("{}")
    with pytest.raises(SystemExit):
        convergence.main([f"--workdir={made}", "--report_only"])
    assert "other.json: is no result of a cell" in capsys.readouterr().err


def test_results_of_the_same_cell_or_of_other_data_are_not_averaged(made):
    file = made / "results" / "openface_96_random_paper_plain_seed0.json"
    (made / "results" / "copy.json").write_text(file.read_text())
    with pytest.raises(InputError, match="another file of this folder is of the same cell"):
        results.load(made / "results")
    (made / "results" / "copy.json").unlink()
    file.write_text(file.read_text().replace("1" * 64, "5" * 64))
    with pytest.raises(InputError, match="its data are not those of the cells it would go with"):
        results.load(made / "results")


def test_a_report_names_the_paper_s_pretrained_cells_until_they_have_run(made):
    folder = made / "results"

    def lacking():
        found = results.lacking(results.load(folder), results.absent(folder), made / "weights")
        return {cell.setting.backbone: reason for cell, reason in found.items() if cell.init == "pretrained"}

    assert set(lacking()) == set(cells.BACKBONES)  # MobileNet ran at alpha 0.75
    assert lacking()["vggface"] == "weights not supplied: python -m weights_conversion.convert --x"
    assert lacking()["mobilenet"] == (
        "weights not supplied: python -m weights_conversion.convert --backbone=mobilenet --alpha=1 "
        "--download --output=weights/mobilenet_1"
    )
    made_up.write(folder, [group("vggface", "pretrained", curve(0.1, 0.9), curve(0.1, 0.5), seeds=1)])
    for name in ("resnet50", "mobilenet_1"):
        (made / "weights" / name).mkdir(parents=True)
    assert set(lacking()) == {"openface", "resnet50", "mobilenet"}
    assert lacking()["resnet50"] == lacking()["mobilenet"] == "has not run"
    resnet50 = cells.papers("resnet50")
    results.remember_absent(
        folder, {cells.Cell(resnet50, "pretrained", 0): results.unsupplied(resnet50)}
    )  # which it is no more
    assert lacking()["resnet50"] == "has not run"
    partly = {"missing": ("conv_pw_13/kernel",), "seeds": 1}
    made_up.write(folder, [group("mobilenet", "pretrained", curve(0.1, 0.9), curve(0.1, 0.5), **partly)])
    assert lacking()["mobilenet"].startswith("complete weights not supplied: python -m weights_conversion")
    own = group("openface", "pretrained", curve(0.1, 0.9), curve(0.1, 0.5), data="my faces")
    for run in own.runs:
        run["data"]["kind"] = "own"
    made_up.write(folder, [own])
    assert "openface" in lacking()


def test_a_cell_runs_in_its_own_process_and_its_failure_ends_it_alone(tmp_path, capsys, monkeypatch):
    """A real one, on 140 drawn faces of which a backbone's random features are learned from."""
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    arguments = [
        f"--workdir={tmp_path}/study", "--backbones=mobilenet", "--alpha=0.25", "--image_size=32",
        "--inits=random", "--seeds=1", "--epochs=2", "--limit=140",
    ]  # fmt: skip
    assert convergence.main(arguments) == 0
    out = capsys.readouterr().out
    assert "[1/1] mobilenet_0.25_32_random_paper_plain_e2_limit140_seed0" in out
    [trained] = results.load(tmp_path / "study" / "results")
    assert len(trained.runs[0]["history"]) == 3
    shutil.rmtree(tmp_path / "study" / "cells")
    arguments.append("--classifiers")  # fitted beside what is measured, which stays, its seconds too
    assert convergence.main(arguments) == 0
    found = results.load(tmp_path / "study" / "results")
    assert {key: found[0].runs[0][key] for key in trained.runs[0]} == trained.runs[0]
    assert set(found[0].runs[0]["classifiers"]) == {
        "logistic regression", "linear SVM", "k nearest neighbours", "random forest"
    }  # fmt: skip
    assert found[0].runs[0]["predict_images_per_s"] > 0
    written = (tmp_path / "study" / "report.md").read_text()
    assert "DRAWN by this program" in written
    assert "random: logistic regression on its embeddings | 1 |" in written
    assert re.search(r"\| k nearest neighbours \| n_neighbors \d+ of 1, 5, 20, 80 \|", written)
    capsys.readouterr()
    assert convergence.main(arguments) == 0  # nothing is left to do
    assert "[1/1]" not in capsys.readouterr().out
    broken = tmp_path / "study" / "cells" / "mobilenet_0.25_32_random_paper_plain_e2_limit140_seed1"
    broken.mkdir()
    (broken / "mine.txt").write_text("a user's file")
    assert convergence.main([*arguments, "--seeds=2"]) == 1
    assert re.search("FAILED, status 2: error: .* is not empty and holds no run", capsys.readouterr().out)
    assert run_cell.PREDICT_BATCH == 32


def test_a_training_is_kept_whatever_becomes_of_its_classifiers(tmp_path, monkeypatch):
    def killed(*_):
        raise MemoryError

    dataset = types.SimpleNamespace(images=[], class_names=(), sha256="1" * 64)
    monkeypatch.setattr(run_cell.train, "train_and_evaluate", lambda *_: {"trained": True})
    monkeypatch.setattr(run_cell.loading, "load", lambda *_: (dataset, None, None))
    monkeypatch.setattr(run_cell, "_measured", lambda *_: {"measured": True})
    monkeypatch.setattr(run_cell.classifiers, "embeddings", killed)
    result = tmp_path / "result.json"
    request = {
        "spec": cells.Cell(cells.Setting("openface", image_size=96), "random", 0).spec(),
        "ferplus": "", "weights": "", "data": "", "workdir": f"{tmp_path}/cell", "result": str(result),
        "classifiers": True,
    }  # fmt: skip
    with pytest.raises(MemoryError):
        run_cell.run(request)
    assert json.loads(result.read_text()) == {"measured": True}


def test_labels_of_another_file_are_not_mixed_with_those_that_are_there(tmp_path, capsys, monkeypatch):
    votes = tmp_path / "votes.csv"
    votes.write_text("other labels")
    measured = group("openface", "random", curve(0.1, 0.3), curve(0.1, 0.3), variant="ferplus", seeds=1)
    measured.runs[0]["data"]["sha256"] += " " + "7" * 64
    made_up.write(tmp_path / "results", [measured])
    arguments = [f"--workdir={tmp_path}", *STUDY, "--variants=ferplus", f"--ferplus={votes}", "--seeds=2"]
    with pytest.raises(SystemExit) as stop:
        convergence.main(arguments)
    assert stop.value.code == 2
    assert f"was measured with other labels than --ferplus={votes}" in capsys.readouterr().err
    monkeypatch.setattr(
        run_cell.loading, "load", lambda *_: (types.SimpleNamespace(sha256="1" * 64 + " 8"), None, None)
    )
    [result] = (tmp_path / "results").glob("*.json")
    request = {
        "spec": measured.runs[0]["spec"], "ferplus": str(votes), "weights": "", "data": "",
        "workdir": f"{tmp_path}/cell", "result": str(result), "classifiers": True,
    }  # fmt: skip
    with pytest.raises(InputError, match="was measured on other faces or labels"):
        run_cell.run(request)


def test_studies_at_work_in_one_directory_keep_each_other_s_reasons(tmp_path):
    mine, theirs, failed = (cells.Cell(cells.Setting(name), "scratch", 0) for name in cells.BACKBONES[1:])
    results.remember_absent(tmp_path, {mine: "failed"}, {mine})
    results.remember_absent(tmp_path, {theirs: "no weights", failed: "failed"}, {theirs, failed})
    results.remember_absent(tmp_path, {}, {mine})
    assert results.absent(tmp_path) == {theirs: "no weights", failed: "failed"}


def test_fer2013_in_folders_is_the_paper_s_data_too(made):
    folders = group("resnet50", "scratch", curve(0.1, 0.9), curve(0.1, 0.5), seeds=1, data="FER-2013")
    folders.runs[0]["data"]["kind"] = "folders"
    found = results.lacking([folders], {}, made / "weights")
    assert ("resnet50", "scratch") not in {(cell.setting.backbone, cell.init) for cell in found}
    known = {cells.Cell(folders.setting, "scratch", 0): "failed before"}
    assert known.keys().isdisjoint(results.lacking([folders], known, made / "weights"))


def test_a_report_names_the_paper_s_random_and_scratch_cells_until_they_have_run(made):
    def lacking():
        found = results.lacking(results.load(made / "results"), {}, made / "weights")
        return {(c.setting.backbone, c.init) for c, why in found.items() if why == "has not run"}

    assert lacking() == {(b, i) for b in cells.BACKBONES for i in ("random", "scratch")} - {
        ("openface", "random"), ("openface", "scratch"), ("mobilenet", "random")
    }  # fmt: skip
    made_up.write(made / "results", [group("vggface", "scratch", curve(0.1, 0.9), curve(0.1, 0.5), seeds=1)])
    assert ("vggface", "scratch") not in lacking()


def test_a_cell_that_leaves_no_result_of_a_cell_does_not_keep_the_others_from_running(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    script = "import json, sys; open(json.load(sys.stdin)['result'], 'w').write('{}')"
    monkeypatch.setattr(running, "COMMAND", (sys.executable, "-c", script))
    with pytest.raises(SystemExit) as stop:
        convergence.main([f"--workdir={tmp_path}", *STUDY, "--seeds=2"])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out.count("FAILED") == 2
    assert printed.err.count("is no result of a cell") == printed.err.count("\n") == 1


def test_a_study_whose_logs_cannot_be_written_ends_with_one_line_and_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    (tmp_path / "logs").write_text("")
    with pytest.raises(SystemExit) as stop:
        convergence.main([f"--workdir={tmp_path}", *STUDY, "--seeds=1"])
    assert stop.value.code == 2
    assert re.fullmatch(r"error: .*: cannot be written \(.*\)\n", capsys.readouterr().err)


def test_a_cell_on_one_s_own_data_ends_in_the_report(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(own.parent)
    arguments = [
        f"--workdir={tmp_path}/study", "--backbones=mobilenet", "--alpha=0.25", "--image_size=32",
        "--inits=random", "--seeds=1", "--epochs=1", "--split=fractions", "--data=my faces",
        "--classifiers",
    ]  # fmt: skip
    assert convergence.main(arguments) == 0
    assert "mobilenet_0.25_32_random_fractions_plain_e1_my-faces_seed0" in capsys.readouterr().out
    [found] = results.load(tmp_path / "study" / "results")
    assert (found.setting.data, found.is_fer2013) == ("my faces", False)
    assert found.runs[0]["class_counts"]["test"] == {"awake": 4, "half asleep": 4}
    # Of 28 training images no 80 are nearest.
    assert found.runs[0]["classifiers"]["k nearest neighbours"]["tried"] == [1, 5, 20]
    assert "half asleep" in (tmp_path / "study" / "report.md").read_text()


def without(*path):
    def change(run):
        for key in path[:-1]:
            run = run[key]
        del run[path[-1]]

    return change


def having(value, *path):
    def change(run):
        for key in path[:-1]:
            run = run[key]
        run[path[-1]] = value

    return change


SCORES = ("val_accuracy", "test_accuracy", "test_macro_f1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((without(*path), f"it lacks {'.'.join(path)}") for path in (
            ("spec",), ("spec", "alpha"), ("mcr",), ("device",), ("test", "degenerate"),
            ("class_counts",), ("class_counts", "test"), ("split", "sha256_of_int64_indices"),
        )),
        (without("history", 10), "history: expected epochs 0 to 20, got 20 rows"),
        (having(19, "spec", "epochs"), "history: expected epochs 0 to 19, got 21 rows"),
        (without("history", 3, "val_loss"), "it lacks history[3].val_loss"),
        (without("mcr", "loss", "epochs_1_5"), "mcr.loss: expected from_epoch_0, "),
        (having("auto", "spec", "init"), "spec.init: expected one of pretrained, random, scratch, got 'a"),
        (having("3", "spec", "seed"), "spec.seed: expected a whole number from 0, got '3'"),
        (having(True, "spec", "seed"), "spec.seed: expected a whole number from 0, got True"),
        (having("red", "spec", "variant"), "spec.variant: expected one of plain, "),
        (having(1, "spec", "colour"), "spec: unknown colour"),
        (having("x", "test", "accuracy"), "test.accuracy: expected 0 to 1, got 'x'"),
        (having(5.0, "test", "accuracy"), "test.accuracy: expected 0 to 1, got 5.0"),
        (having(math.nan, "history", 2, "val_accuracy"), "history[2].val_accuracy: expected 0 to 1, got nan"),
        (having("", "data", "sha256"), "data.sha256: expected text that is not empty, got ''"),
        (having([], "test", "confusion"), "test.confusion: expected 7 rows of as many numbers"),
        (having(5, "class_counts", "test", "joy"), "class_counts.test: expected angry, "),
        (having({"x": {}}, "classifiers"), "it lacks classifiers.x.val_accuracy"),
        (having({"x": dict.fromkeys(SCORES, 0.5) | {"tried": 1}}, "classifiers"), "classifiers.x.tried: "),
        (having(None, "data", "notes"), "data.notes: expected a list, got None"),
        (having(3, "readings", "seeds"), "readings.seeds: expected text, got 3"),
        (having("x", "model", "initial_feature_rms"), "initial_feature_rms: expected a number or null"),
        (having(1, "classifiers_git_revision"), "classifiers_git_revision: expected text or null"),
        (having({"accuracy": 2}, "test_without_duplicates"), "test_without_duplicates.accuracy: expected 0"),
        (having(0, "predict_images_per_s"), "predict_images_per_s: expected a number above 0, got 0"),
    ],
)  # fmt: skip
def test_a_result_that_is_not_as_it_was_written_is_named_with_its_fault(change, words, tmp_path):
    made = group("openface", "pretrained", curve(0.1, 0.3), curve(0.1, 0.3), seeds=1)
    run = json.loads(json.dumps(made.runs[0]))
    change(run)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(run))
    with pytest.raises(InputError) as error:
        results.load(tmp_path)
    assert str(error.value).startswith(f"{path}: is no result of a cell, or damaged (")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["--dry_run", "--report_only", "--no_faces"])
@pytest.mark.parametrize("size", [0, 1000])
def test_a_damaged_file_stops_every_command_before_a_cell_runs(made, option, size, capsys, monkeypatch):
    monkeypatch.setattr(running.Study, "run", lambda *_: pytest.fail("ran"))
    file = made / "results" / "openface_96_random_paper_plain_seed0.json"
    whole = file.read_bytes()
    for path in (file, made / "results" / "absent.json"):
        file.write_bytes(whole)
        path.write_bytes(path.read_bytes()[: min(size, path.stat().st_size - 9)])
        with pytest.raises(SystemExit) as stop:
            convergence.main([f"--workdir={made}", "--backbones=openface", "--inits=scratch", option])
        assert stop.value.code == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: {path}: is no ")
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{}", "[{}]", '[{"spec": {"x": 1}, "reason": "y"}]', '[{"spec": 1}]'])
def test_a_damaged_list_of_absent_cells_is_named(text, tmp_path):
    (tmp_path / "absent.json").write_text(text)
    with pytest.raises(InputError, match=r"absent\.json: is no list of cells"):
        results.absent(tmp_path)


def on_drawn_faces(g):
    for run in g.runs:
        run["data"]["kind"] = "drawn"
    return g


STUDY = ["--backbones=openface", "--inits=random"]


def study_of_drawn_faces(folder, seeds):
    """Results of OpenFace with random weights, where drawn faces are what a run would take."""
    random = group("openface", "random", curve(0.1, 0.3), curve(0.1, 0.3), seeds=seeds)
    made_up.write(folder / "results", [on_drawn_faces(random)])


def test_a_finished_cell_counts_by_what_it_is_whatever_its_file_is_called(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running.Study, "run", lambda *_: pytest.fail("ran"))
    study_of_drawn_faces(tmp_path, seeds=2)
    folder = tmp_path / "results"
    seed_1 = folder / "openface_96_random_paper_plain_seed1.json"
    seed_1.rename(folder / "theirs.json")
    options = [f"--workdir={tmp_path}", *STUDY, "--seeds=2"]
    assert convergence.main(options) == 0
    assert "2 of 2 cells are done" in capsys.readouterr().out
    (folder / "openface_96_random_paper_plain_seed0.json").rename(seed_1)
    (folder / "theirs.json").unlink()
    with pytest.raises(SystemExit):
        convergence.main(options)
    assert f"{seed_1}: is the result of another cell" in capsys.readouterr().err


def test_a_result_that_is_being_written_counts_for_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running.Study, "run", lambda *_: pytest.fail("ran"))
    study_of_drawn_faces(tmp_path, seeds=2)
    folder = tmp_path / "results"
    whole = folder / "openface_96_random_paper_plain_seed0.json"
    (folder / f".{whole.stem}.4711.tmp.json").write_bytes(whole.read_bytes())
    (folder / f".{whole.stem}.4712.tmp.json").write_bytes(whole.read_bytes()[:100])
    assert convergence.main([f"--workdir={tmp_path}", *STUDY, "--seeds=2"]) == 0
    assert "2 of 2 cells are done" in capsys.readouterr().out


def test_the_reason_of_a_failure_is_of_its_last_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    options = [f"--workdir={tmp_path}", *STUDY, "--seeds=1"]
    for words, reason in (("no room", "failed: status 1: no room"), ("", "failed: status 1: no output")):
        script = f"import sys; sys.exit({words!r} or 1)"
        monkeypatch.setattr(running, "COMMAND", (sys.executable, "-c", script))
        assert convergence.main(options) == 1
        assert list(results.absent(tmp_path / "results").values()) == [reason]


def test_what_is_known_of_an_absent_cell_stays_until_it_has_run(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    study_of_drawn_faces(tmp_path, seeds=1)
    setting = cells.papers("openface")
    stopped = cells.Cell(setting, "random", 1)
    results.remember_absent(tmp_path / "results", {stopped: "stopped after 7 of 20 epochs"})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Study, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        convergence.main([f"--workdir={tmp_path}", *STUDY, "--seeds=2"])
    assert stop.value.code == 130
    assert results.absent(tmp_path / "results") == {stopped: "stopped after 7 of 20 epochs"}


def test_failures_are_remembered_at_once_without_folders_until_their_cells_have_run(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    script = f"print('error: {tmp_path}/cells/name: is not empty'); raise SystemExit(2)"
    monkeypatch.setattr(running, "COMMAND", (sys.executable, "-c", script))
    study_of_drawn_faces(tmp_path, seeds=1)
    folder = tmp_path / "results"
    options = [f"--workdir={tmp_path}", *STUDY]
    assert convergence.main([*options, "--seeds=3"]) == 1
    out = capsys.readouterr().out
    log = tmp_path / "logs" / "openface_96_random_paper_plain_seed1.log"
    assert re.search(r"\[2/3\] openface_96_random_paper_plain_seed1: about .* left in all, log: ", out)
    assert f"FAILED, status 2: error: {tmp_path}/cells/name: is not empty (see {log})" in out
    reasons = {cell.seed: reason for cell, reason in results.absent(folder).items()}
    assert reasons == dict.fromkeys((1, 2), "failed: status 2: error: name: is not empty")
    assert "failed: status 2: error: name: is not empty" in (tmp_path / "report.md").read_text()

    def interrupted(study, cell):
        if cell.seed == 1:
            return "another fault"
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Study, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        convergence.main([*options, "--seeds=4"])
    assert stop.value.code == 130
    assert "--report_only" in capsys.readouterr().err
    reasons = {cell.seed: reason for cell, reason in results.absent(folder).items()}
    assert reasons == {1: "failed: another fault", 2: "failed: status 2: error: name: is not empty"}
    assert convergence.main([*options, "--seeds=1"]) == 0
    assert {cell.seed: reason for cell, reason in results.absent(folder).items()} == reasons
    study_of_drawn_faces(tmp_path, seeds=3)
    assert convergence.main([*options, "--seeds=1"]) == 0
    assert results.absent(folder) == {}


def test_a_long_cell_has_its_request_and_its_progress_told_all_the_while(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    monkeypatch.setattr(running, "TOLD_SECONDS", 0.2)
    script = """
import json, sys, time
print("asked for seed", json.load(sys.stdin)["spec"]["seed"], flush=True)
time.sleep(1)
print("epoch 1", flush=True)
time.sleep(1)
sys.exit("no room")
"""
    monkeypatch.setattr(running, "COMMAND", (sys.executable, "-c", script))
    assert convergence.main([f"--workdir={tmp_path}", *STUDY, "--seeds=1"]) == 1
    told = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert told[:2] == ["asked for seed 0", "epoch 1"]
    assert told[2].startswith("FAILED, status 1: no room")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_the_cell_too(number, tmp_path):
    script = """
import signal, sys
from benchmarks import convergence
from benchmarks.study import plan, running
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
plan.flops_per_second = lambda: 1e11
running.TOLD_SECONDS = 0.2
cell = "import os, time; print('epoch 1:  7%', end=chr(13)); print(os.getpid(), flush=True); time.sleep(600)"
running.COMMAND = (sys.executable, "-c", cell)
sys.exit(convergence.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", script, f"--workdir={tmp_path}", *STUDY, "--seeds=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = iter(process.stdout)
        assert next(told) == "0 of 1 cells are done, 0 lack weights\n"
        assert next(told).startswith("[1/1] ")
        cell = int(next(told))  # the last line of its log
        process.send_signal(number)
        assert process.wait() == 130
    with pytest.raises(ProcessLookupError):
        os.kill(cell, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is Linux's")
def test_a_study_that_is_killed_leaves_no_cell_running():
    cell = "from fer_jax import process; process.end_with_parent(); print('up', flush=True); input()"
    study = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {cell!r}])"
    with subprocess.Popen([sys.executable, "-c", study], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.kill()
        assert process.stdout.read() == ""  # which ends when nobody can write to it any more


def test_a_dry_run_counts_shared_features_once_and_the_rows_of_a_csv(
    small_csv, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    (tmp_path / "weights" / "mobilenet_0.75").mkdir(parents=True)
    options = [
        f"--workdir={tmp_path}", f"--weights={tmp_path}/weights", "--backbones=mobilenet", "--alpha=0.75",
        "--inits=pretrained", "--dry_run",
    ]  # fmt: skip
    assert convergence.main([*options, "--seeds=1"]) == 0
    one = float(re.search(r"([\d.]+) GB of disk", capsys.readouterr().out)[1])
    assert one > 3
    assert convergence.main([*options, "--seeds=5", "--classifiers"]) == 0
    out = capsys.readouterr().out
    assert float(re.search(r"([\d.]+) GB of disk", out)[1]) == pytest.approx(one, abs=0.2)
    assert "as for FER2013, which was not found" in out
    cell = cells.Cell(cells.Setting("mobilenet", 0.75), "pretrained", 0)
    fitting = plan.forecast(cell, classifiers=True).seconds - plan.forecast(cell).seconds
    assert fitting == pytest.approx(25_121 * 768 * plan.CLASSIFIER_SECONDS)
    zipped = tmp_path / "faces.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.write(small_csv, "fer2013.csv")
    for path in (small_csv, zipped):
        assert plan.faces_and_classes(sources.find(path)) == (200, 7)
        assert convergence.main([*options, f"--data={path}"]) == 0
        assert float(re.search(r"([\d.]+) GB of disk", capsys.readouterr().out)[1]) < 0.5


def test_no_download_is_offered_of_weights_that_were_never_published(tmp_path, capsys):
    options = [f"--workdir={tmp_path}", "--backbones=mobilenet", "--inits=pretrained", "--seeds=1"]
    assert convergence.main([*options, "--alpha=0.33", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "weights not supplied: no weights of MobileNet alpha 0.33 were published" in out
    assert "--download" not in out


def test_runs_of_different_processors_are_of_different_machines_and_older_ones_of_one():
    made = group("openface", "random", curve(0.1, 0.3), curve(0.1, 0.3), seeds=2)
    assert len(made.machines) == 1
    for run, name in zip(made.runs, ("fast", "slow"), strict=True):
        run["device"]["processor"] = name
    assert len(made.machines) == 2
    assert "fast" in made.machine


def test_runs_that_multiply_float32_otherwise_are_as_of_different_machines():
    made = group("openface", "random", curve(0.1, 0.3), curve(0.1, 0.3), seeds=2)
    for run, precision in zip(made.runs, ("default", "highest"), strict=True):
        run["readings"]["compute"] = f"backbone in float32, products at JAX's {precision} precision"
    made.runs[0]["predict_images_per_s"] = 9_000.0
    assert list(made.machines.values()) == [1, 1]
    exact = made.only([1])
    assert results.images_per_s(exact, [made, exact]) == exact.runs[0]["predict_images_per_s"]
