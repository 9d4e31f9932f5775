"""The recommendations, on made-up results."""

import dataclasses
import re
import subprocess
import sys

import made_up_study as made_up
import pytest
from made_up_study import curve, group

from benchmarks import identify
from benchmarks.study import cells, results
from benchmarks.study.cells import BACKBONES


def pretrained(name, final, test=None, **options):
    """Of this final validation accuracy, and test accuracy where that differs."""
    g = group(name, "pretrained", curve(0.1, 0.9), curve(0.1, final), **options)
    for run in g.runs if test is not None else ():
        run["test"]["accuracy"] = test
    return g


def test_it_prints_the_front_what_lacks_weights_and_what_follows(made, capsys):
    assert identify.main([str(made)]) == 0
    out = capsys.readouterr().out
    assert not re.search(r"mobilenet alpha 1 at 224, random +\d", out)  # degenerate
    assert re.search(r"mobilenet alpha 0.75 at 224, pretrained .* 0\.552 ± 0\.002 .* 200 .* yes\n", out)
    assert re.search(r"quality first: mobilenet alpha 0.75 .*the paper says vggface; cannot be compared", out)
    assert re.search(
        r"speed first: openface at 96, scratch .*the paper says openface; cannot be compared", out
    )
    assert "\nvggface at 224, pretrained: weights not supplied\n" in out
    assert out.count("python -m weights_conversion.convert --x") == 1
    assert "\nresnet50 at 224, pretrained: weights not supplied\n" in out  # never asked for


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slack=-1"], "--slack: expected at least 0, got -1.0"),
        (["--slack=nan"], "--slack: expected at least 0, got nan"),
        (["--max_parameters=-5"], "--max_parameters: expected at least 1, got -5"),
        (["--variant=balanced"], "no sound run with split paper, variant balanced, epochs 20, learning_rate"),
        (["--epochs=3"], "epochs 3, learning_rate 0.0001; it has openface at 96, "),
    ],
)
def test_bad_arguments_end_with_one_line_and_status_2(made, arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        identify.main([str(made), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error
    assert error.count("\n") == 1


def test_degenerate_runs_are_left_out_of_their_group_and_it_says_how_many(tmp_path, capsys):
    groups = [pretrained("openface", 0.5), pretrained("vggface", 0.45)]
    groups[0].runs[0]["test"]["degenerate"] = True
    groups[0].runs[0]["final"]["val_accuracy"] = 0.1  # with it the mean would be 0.369
    made_up.write(tmp_path / "results", groups)
    assert identify.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"openface at 96, pretrained +2 +0\.503 ± 0\.001 ", out)
    assert (
        "\nleft out as degenerate, one class for every face: openface at 96, pretrained (1 of 3 degen" in out
    )
    assert "quality first: openface at 96, pretrained (" in out


def test_settings_that_are_degenerate_throughout_are_named(made, capsys):
    assert identify.main([str(made)]) == 0
    words = (
        "\nleft out as degenerate, one class for every face: mobilenet alpha 1 at 224, random (degenerate)\n"
    )
    assert words in capsys.readouterr().out


def test_a_directory_that_is_no_study_ends_with_status_2(tmp_path):
    with pytest.raises(SystemExit) as stop:
        identify.main([str(tmp_path)])
    assert stop.value.code == 2


def test_it_and_the_report_are_made_without_jax(made):
    script = """
import sys
from benchmarks import convergence, identify
assert identify.main(sys.argv[1:]) == 0
assert convergence.main([f"--workdir={sys.argv[1]}", "--report_only"]) == 0
assert not {"jax", "flax"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(made)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_ends_it_without_a_traceback(made):
    command = f"{sys.executable} -m benchmarks.identify {made} | true"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert found.stderr == ""


def test_the_front_leaves_out_what_another_beats_in_quality_and_speed():
    groups = [
        group("openface", "scratch", curve(0.1, 0.5), curve(0.1, 0.5)),  # 400 images/s
        group("mobilenet", "scratch", curve(0.1, 0.5), curve(0.1, 0.45)),  # 200, beaten
        group("resnet50", "scratch", curve(0.1, 0.5), curve(0.1, 0.6)),  # 40
    ]
    assert identify.front(groups, groups) == [groups[0], groups[2]]
    chosen = identify.recommend(groups, groups, max_parameters=4_000_000, slack=0.02)
    assert {need: g.setting.backbone for need, g in chosen.items()} == {
        "quality first": "resnet50",
        "at most 4,000,000 parameters": "openface",
        "speed first": "openface",
        "fastest within 0.02 of the best": "resnet50",
    }


def test_noise_in_the_speed_of_one_network_decides_nothing():
    better, worse = pretrained("mobilenet", 0.5), group("mobilenet", "scratch", curve(0, 1), curve(0.1, 0.3))
    for run in worse.runs:
        run["predict_images_per_s"] *= 1.5
    groups = [worse, better]
    assert identify.front(groups, groups) == [better]
    chosen = identify.recommend(groups, groups, max_parameters=10, slack=0.5)
    assert chosen["speed first"] == chosen["fastest within 0.5 of the best"] == better


def test_what_another_machine_measured_is_compared_in_quality_alone_and_it_says_so(tmp_path, capsys):
    groups = [pretrained(name, 0.4 + 0.1 * place) for place, name in enumerate(BACKBONES)]
    for run in groups[3].runs:
        run["device"] = {"kind": "gpu", "cpu_cores": 2}
    assert groups[3] not in identify.front(groups, groups)
    chosen = identify.recommend(groups, groups, 10**9, 0.02)
    assert chosen["quality first"] == groups[3]
    assert chosen["speed first"] == groups[0]
    assert chosen["fastest within 0.02 of the best on that machine"] == groups[2]
    made_up.write(tmp_path / "results", groups)
    assert identify.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    words = (
        "no images/s on the machine that most ran on, so compared in quality alone: mobilenet alpha 1 at 224"
    )
    assert words in out
    assert re.search(r"mobilenet alpha 1 at 224, pretrained +3 .* – +\d", out)
    assert "no complete pretrained run of mobilenet alpha 1 at 224 on that machine" in out


def test_speed_is_of_the_network_so_that_a_setting_trained_elsewhere_has_that_of_the_machine_of_most():
    trained_elsewhere, alike = (
        pretrained("openface", 0.6),
        group("openface", "random", curve(0.1, 0.3), curve(0.1, 0.3)),
    )
    for run in trained_elsewhere.runs:
        run["device"] = {"kind": "gpu", "cpu_cores": 2}
        run["predict_images_per_s"] = 9_000.0
    groups = [trained_elsewhere, alike, pretrained("resnet50", 0.5)]
    rates = [identify.speed(g, groups, groups) for g in groups]
    assert rates[0] == rates[1] == results.images_per_s(alike, [alike])
    assert identify.front(groups, groups) == [trained_elsewhere]


def test_settings_of_other_rows_than_the_rest_are_left_out_and_named(tmp_path, capsys):
    groups = [pretrained(name, 0.4 + 0.1 * place) for place, name in enumerate(BACKBONES)]
    for run in groups[3].runs:
        other = dict.fromkeys(run["split"]["sha256_of_int64_indices"], "0" * 64)
        run["split"] = {**run["split"], "sha256_of_int64_indices": other}
    assert identify.on_the_same_faces(groups) == groups[:3]
    made_up.write(tmp_path / "results", groups)
    assert identify.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "left out, on other data or rows than the rest: mobilenet alpha 1 at 224, pretrained\n" in out
    assert "quality first: resnet50 at 224, pretrained" in out


def test_a_study_of_fewer_faces_or_epochs_is_compared_when_asked_for(tmp_path, capsys):
    groups = [pretrained("openface", 0.5), pretrained("vggface", 0.4)]
    for place, made in enumerate(groups):
        setting = dataclasses.replace(made.setting, limit=2000)
        groups[place] = dataclasses.replace(made, setting=setting)
        for seed, run in zip(made.seeds, made.runs, strict=True):
            run["spec"] = cells.Cell(setting, "pretrained", seed).spec()
    made_up.write(tmp_path / "results", groups)
    assert identify.main([str(tmp_path), "--limit=2000"]) == 0
    assert "quality first: openface at 96, limited to 2,000 faces" in capsys.readouterr().out


def test_a_setting_measured_on_two_machines_is_compared_by_the_runs_on_the_one_that_has_most():
    mixed, slower = pretrained("openface", 0.4), pretrained("resnet50", 0.4)
    mixed.runs[0]["device"] = {"kind": "gpu", "cpu_cores": 2}
    mixed.runs[0]["predict_images_per_s"] = 1.0
    for run in slower.runs:
        run["predict_images_per_s"] = 100.0
    assert identify.front([mixed, slower], [mixed, slower]) == [mixed]
    assert identify.recommend([mixed, slower], [mixed, slower], 10, 0.02)["speed first"] == mixed


def test_validation_chooses_and_test_is_shown_beside_it(tmp_path, capsys):
    groups = [pretrained("openface", 0.4, test=0.9), pretrained("resnet50", 0.5, test=0.1)]
    assert identify.recommend(groups, groups, 10, 0.02)["quality first"] == groups[1]
    made_up.write(tmp_path / "results", groups)
    assert identify.main([str(tmp_path)]) == 0
    assert re.search(
        r"openface at 96, pretrained +3 +0\.402 ± 0\.002 +0\.900 ± 0\.000", capsys.readouterr().out
    )


def test_a_choice_agrees_or_disagrees_with_the_paper_where_every_backbone_ran_pretrained():
    groups = [pretrained(name, 0.6 if name == "vggface" else 0.5) for name in BACKBONES]
    chosen = identify.recommend(groups, groups, 10, 0.02)
    said = {need: identify.agreement(need, groups, groups) for need in chosen}
    assert said["quality first"] == "the paper says vggface; of its networks it is vggface: agrees"
    assert said["speed first"] == "the paper says openface; of its networks it is openface: agrees"
    assert said["at most 10 parameters"] == ""
    # What the paper never compared has no part in that, be it better and faster.
    scratch = group("openface", "scratch", curve(0.1, 0.9), curve(0.1, 0.9))
    others = [*groups, pretrained("mobilenet", 0.8, alpha=0.25), scratch]
    assert said == {need: identify.agreement(need, others, others) for need in chosen}
    groups[0], groups[1] = pretrained("openface", 0.7), pretrained("vggface", 0.5)
    said = identify.agreement("quality first", groups, groups)
    assert said == "the paper says vggface; of its networks it is openface: disagrees"
    for options in ({"alpha": 0.75}, {"missing": ("conv_pw_13/kernel",)}):
        others = [*groups[:3], pretrained("mobilenet", 0.5, **options)]
        said = identify.agreement("quality first", others, others)
        assert said.endswith("no complete pretrained run of mobilenet alpha 1 at 224"), options


def test_the_best_in_quality_tells_what_seeds_do_not_tell_from_it(tmp_path, capsys):
    groups = [pretrained("openface", 0.5), pretrained("vggface", 0.4), pretrained("resnet50", 0.4, seeds=1)]
    one_seed = "resnet50 at 224, pretrained (too few seeds to tell)"
    assert identify.not_told_from(groups[0], groups) == one_seed
    groups[1] = pretrained("vggface", 0.49, noise=0.05)
    made_up.write(tmp_path / "results", groups)
    assert identify.main([str(tmp_path)]) == 0
    told = f"seeds do not tell from openface at 96, pretrained; {one_seed}\n"
    assert told in capsys.readouterr().out


def test_runs_of_another_learning_rate_are_not_compared(tmp_path, capsys):
    groups = [pretrained("openface", 0.5), pretrained("vggface", 0.9)]
    setting = dataclasses.replace(groups[1].setting, learning_rate=1e-3)
    groups[1] = dataclasses.replace(groups[1], setting=setting)
    for seed, run in zip(groups[1].seeds, groups[1].runs, strict=True):
        run["spec"] = cells.Cell(setting, "pretrained", seed).spec()
    made_up.write(tmp_path / "results", groups)
    assert identify.main([str(tmp_path)]) == 0
    assert "learning rate" not in capsys.readouterr().out
