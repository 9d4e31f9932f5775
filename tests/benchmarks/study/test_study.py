"""Cells, the command, its report and the recommendations, with made-up results; one real cell."""

import json
import re

import made_up_study as made_up
import numpy as np
import pytest
from made_up_study import curve, group, saturating
from PIL import Image

from benchmarks import convergence, identify
from benchmarks.study import blocks, cells, pages, plan, results, run_cell
from fer_jax.errors import InputError


@pytest.fixture
def made(tmp_path):
    """A study of made-up runs, one of them degenerate, one group without weights."""
    groups = [
        group("openface", "random", curve(0.14, 0.35), curve(0.14, 0.33)),
        group("openface", "scratch", saturating(0.14, 0.9), curve(0.14, 0.5), seeds=1),
        group("mobilenet", "pretrained", saturating(0.2, 0.95), curve(0.2, 0.55), alpha=0.75),
        group(
            "mobilenet",
            "pretrained",
            saturating(0.2, 0.95),
            curve(0.2, 0.53),
            alpha=0.75,
            variant="deduplicated",
        ),
        group("mobilenet", "random", curve(0.25, 0.25), curve(0.25, 0.25), degenerate=True, seeds=1),
    ]
    made_up.write(tmp_path / "results", groups)
    absent = cells.Cell(cells.Setting("vggface"), "pretrained", 0)
    results.remember_absent(
        tmp_path / "results", {absent: "weights not supplied: python -m weights_conversion.convert --x"}
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backbones=alexnet"], "--backbones: unknown 'alexnet'"),
        (["--inits=auto"], "--inits: unknown 'auto'"),
        (["--seeds=0"], "--seeds: expected at least 1"),
        (["--limit=-1"], "--limit: expected at least 0"),
        (["--variants=ferplus"], "--ferplus: no such file"),
        (["--split=half", "--dry_run"], "--split: unknown 'half'"),
        (["--data={empty}/nowhere", "--dry_run"], "nowhere: no such file or directory; expected faces as"),
        (["--data={empty}", "--dry_run"], ": no faces found; looked for"),
        (["--backbones=openface", "--image_size=224", "--dry_run"], "image_size: openface cannot take 224"),
        (["--report_only", "--workdir={empty}/results/x"], None),
    ],
)
def test_bad_arguments_end_with_one_line_and_status_2(arguments, words, capsys, tmp_path):
    arguments = [argument.format(empty=tmp_path) for argument in arguments]
    if words is None:
        assert convergence.main(arguments) == 0  # an empty study has an empty report
        return
    with pytest.raises(SystemExit) as stop:
        convergence.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_results_on_other_data_are_refused_and_not_taken_for_done(small_csv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(convergence.Study, "run", lambda *_: pytest.fail("ran"))
    cell = cells.Cell(cells.Setting("openface", image_size=96), "random", 0)
    (tmp_path / "results").mkdir()
    result = tmp_path / "results" / f"{cell.name}.json"
    result.write_text(json.dumps({"data": {"sha256": "0" * 64}}))
    arguments = ["--backbones=openface", "--inits=random", "--seeds=1", f"--data={small_csv}"]
    with pytest.raises(SystemExit) as stop:
        convergence.main([*arguments, f"--workdir={tmp_path}"])
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
    # 35,887 faces, 0.4 GFLOP each, at 40 GFLOP/s: 6 minutes for the features; 2,944 bytes of them a face.
    assert all(re.search(r"\b[6-8] min .* 0\.1 GB$", line) for line in random)
    assert "4 cells to run" in lines[-2]
    assert re.match(r"at most \d+\.\d GB of memory at a time, of \d+ here; \d+\.\d GB of disk", lines[-1])
    assert not list(tmp_path.iterdir())


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
    assert plan.faces_and_classes(str(own)) == (40, 2)
    assert not (tmp_path / "study").exists()


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


def test_the_report_has_every_cell_and_claim_and_stands_alone(made):
    assert convergence.main([f"--workdir={made}", "--report_only"]) == 0
    markdown, html = (made / "report.md").read_text(), (made / "report.html").read_text()
    for text in (markdown, html):
        for words in (
            "openface at 96, random", "openface at 96, scratch", "mobilenet alpha 0.75 at 224, pretrained",
            "weights not supplied", "python -m weights_conversion.convert --x", "Degenerate",
            "cannot be tested here", "Happiness, anger, fear and surprise", "-2.0 [-2.0, -2.0]",
        ):  # fmt: skip
            assert words in text, words
    assert not re.search(r'(src|href)="(?!data:)', html)
    for name in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (made / name).read_bytes().startswith(b"\x89PNG")


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
    with pytest.raises(InputError, match="data, split or weights are not those of the cells"):
        results.load(made / "results")


def test_weights_that_came_later_are_no_longer_absent(made):
    folder = made / "results"
    assert len(results.absent(folder)) == 1
    made_up.write(folder, [group("vggface", "pretrained", curve(0.1, 0.9), curve(0.1, 0.5), seeds=1)])
    results.remember_absent(folder, {})
    assert results.absent(folder) == {}


def test_identify_prints_the_front_and_what_follows(made, capsys):
    assert identify.main([str(made)]) == 0
    out = capsys.readouterr().out
    assert "mobilenet alpha 1 at 224, random" not in out  # degenerate
    assert re.search(r"mobilenet alpha 0.75 at 224, pretrained .* yes\n", out)
    assert re.search(r"quality first: mobilenet alpha 0.75 .*the paper says vggface; cannot be compared", out)
    assert re.search(
        r"speed first: openface at 96, scratch .*the paper says openface; cannot be compared", out
    )
    with pytest.raises(SystemExit):
        identify.main([str(made / "nowhere")])


def test_the_front_leaves_out_what_another_beats_in_quality_and_speed():
    groups = [
        group("openface", "scratch", curve(0.1, 0.5), curve(0.1, 0.5)),  # 400 images/s
        group("mobilenet", "scratch", curve(0.1, 0.5), curve(0.1, 0.45)),  # 200, beaten
        group("resnet50", "scratch", curve(0.1, 0.5), curve(0.1, 0.6)),  # 40
    ]
    assert identify.front(groups) == [groups[0], groups[2]]
    chosen = identify.recommend(groups, max_parameters=4_000_000, slack=0.02)
    assert [g.setting.backbone if g else None for g in chosen.values()] == [
        "resnet50",
        "openface",
        "openface",
        "resnet50",
    ]


def test_markdown_and_html_escape_what_tables_hold():
    made = [blocks.Heading("a <b>", 1), blocks.Table(["x", "y"], [["a|b\nc", "<i>"]])]
    assert "a\\|b<br>c" in blocks.markdown(made)
    assert "<td>&lt;i&gt;</td>" in blocks.page(made, None)


def test_a_cell_runs_in_its_own_process_and_its_failure_ends_it_alone(tmp_path, capsys, monkeypatch):
    """A real one, on 140 drawn faces of which a backbone's random features are learned from."""
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    arguments = [
        f"--workdir={tmp_path}/study", "--backbones=mobilenet", "--alpha=0.25", "--image_size=32",
        "--inits=random", "--seeds=1", "--epochs=2", "--limit=140", "--classifiers",
    ]  # fmt: skip
    assert convergence.main(arguments) == 0
    out = capsys.readouterr().out
    assert "[1/1] mobilenet_0.25_32_random_paper_plain_e2_limit140_seed0" in out
    found = results.load(tmp_path / "study" / "results")
    assert len(found[0].runs[0]["history"]) == 3
    assert set(found[0].runs[0]["classifiers"]) == {
        "logistic regression", "linear SVM", "k nearest neighbours", "random forest"
    }  # fmt: skip
    assert found[0].runs[0]["predict_images_per_s"] > 0
    written = (tmp_path / "study" / "report.md").read_text()
    assert "DRAWN by this program" in written
    assert "random: logistic regression on its embeddings | 1 |" in written
    assert convergence.main(arguments) == 0  # nothing is left to do
    assert "[1/1]" not in capsys.readouterr().out
    broken = tmp_path / "study" / "cells" / "mobilenet_0.25_32_random_paper_plain_e2_limit140_seed1"
    broken.mkdir()
    (broken / "mine.txt").write_text("a user's file")
    assert convergence.main([*arguments, "--seeds=2"]) == 1
    assert re.search("FAILED, status 2: error: .* is not empty and holds no run", capsys.readouterr().out)
    assert run_cell.PREDICT_BATCH == 32


def test_a_cell_on_one_s_own_data_ends_in_the_report(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "flops_per_second", lambda: 1e11)
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(own.parent)
    arguments = [
        f"--workdir={tmp_path}/study", "--backbones=mobilenet", "--alpha=0.25", "--image_size=32",
        "--inits=random", "--seeds=1", "--epochs=1", "--split=fractions", "--data=my faces",
    ]  # fmt: skip
    assert convergence.main(arguments) == 0
    assert "mobilenet_0.25_32_random_fractions_plain_e1_my-faces_seed0" in capsys.readouterr().out
    [found] = results.load(tmp_path / "study" / "results")
    assert (found.setting.data, found.is_fer2013) == ("my faces", False)
    assert found.runs[0]["class_counts"]["test"] == {"awake": 4, "half asleep": 4}
    assert "half asleep" in (tmp_path / "study" / "report.md").read_text()


def test_spread_has_no_deviation_of_one_value():
    assert pages.spread(np.array([0.5])) == "0.500"
    assert pages.spread(np.array([0.5, 0.7]), 2) == "0.60 ± 0.14"
