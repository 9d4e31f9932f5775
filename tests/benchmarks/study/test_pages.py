"""The report of made-up results: tables, figures, csv files, and what they say of odd runs."""

import csv
import dataclasses
import html
import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from made_up_study import curve, group
from PIL import Image

from benchmarks import convergence
from benchmarks.study import blocks, cells, figures, pages, results, wording


@pytest.fixture
def report(tmp_path, monkeypatch):
    """report.md of groups and absent cells, its pictures empty."""
    for name, place in (("plot_histories", 4), ("plot_recall", 2), ("plot_confusions", 2)):
        monkeypatch.setattr(figures, name, lambda *inputs, place=place: inputs[place].write_bytes(b""))

    def write(groups, absent=None):
        pages.write(tmp_path, groups, absent or {}, faces=False)
        return (tmp_path / "report.md").read_text()

    return write


def plain(**options):
    return group("mobilenet", "pretrained", curve(0.2, 0.9), curve(0.2, 0.5), **options)


def section(markdown, title):
    return re.split(r"\n## ", markdown.split(f"\n## {title}")[1])[0]


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_report_has_every_cell_and_claim_and_stands_alone(made):
    before = {path: path.read_bytes() for path in (made / "results").iterdir()}
    assert convergence.main([f"--workdir={made}", "--report_only"]) == 0
    markdown, page = (made / "report.md").read_text(), (made / "report.html").read_text()
    for text in (markdown, html.unescape(page)):
        for words in (
            "openface at 96, random", "openface at 96, scratch", "mobilenet alpha 0.75 at 224, pretrained",
            "weights not supplied", "python -m weights_conversion.convert --x", "Degenerate",
            "cannot be tested here", "Happiness, anger, fear and surprise", "-2.0 [-2.0, -2.0]",
            wording.SPEED,
        ):  # fmt: skip
            assert words in text, words
    assert not re.search(r'(src|href)="(?!data:)', page)
    for name in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (made / name).read_bytes().startswith(b"\x89PNG")
    assert {path: path.read_bytes() for path in (made / "results").iterdir()} == before


def test_cells_without_weights_stand_in_every_table_with_the_command_below(report):
    lacking = {
        cells.Cell(cells.Setting(name), "pretrained", 0): "weights not supplied: get them"
        for name in ("vggface", "mobilenet")
    }
    markdown = report([plain(alpha=0.75)], lacking)
    fitted = plain(alpha=0.75)
    scores = dict.fromkeys(("val_accuracy", "test_accuracy", "test_macro_f1"), 0.5)
    fitted.runs[0]["classifiers"] = {"random forest": {"max_depth": 40, **scores}}
    assert "| vggface at 224, pretrained: weights not supplied | – |" in section(
        report([fitted], lacking), "Classifiers"
    )
    for title, tables, names in (
        ("Summary", 1, ("vggface", "mobilenet alpha 1")),
        ("Table 3", 3, ("vggface",)),
        ("Table 5", 3, ("mobilenet alpha 1",)),
        ("Classes", 1, ("vggface", "mobilenet alpha 1")),
        ("Method", 1, ("vggface", "mobilenet alpha 1")),
    ):
        text = section(markdown, title)
        for name in names:
            row = f"| {name} at 224, pretrained: weights not supplied | – |"
            assert text.count(row) == tables, (title, name)
            assert text.count(f"{name} at 224, pretrained: weights not supplied: get them") == 1
    assert "epochs 16-20" in section(markdown, "Table 3")
    assert not any("get them" in row for row in rows(markdown))


def test_a_backbone_s_tables_have_initial_values_sizes_seconds_and_speed(report):
    slow = plain(seeds=2)
    slow.runs[0]["predict_images_per_s"] = 50.0
    text = section(report([slow]), "Table 5")
    assert "epoch 0, before training | epoch 1, initial in the paper | epoch 5" in text
    assert "epochs 1-5 |" in text
    cells_of = [cell.strip() for cell in rows(text)[-1].split("|")]
    assert cells_of[4:-1] == ["3,228,864", "1,000", "20", "200"]


def test_seconds_and_images_s_are_of_the_machine_that_most_runs_were_measured_on(report):
    mixed = plain(seeds=3)
    mixed.runs[0]["device"] = {"kind": "gpu", "processor": "another"}
    mixed.runs[0]["predict_images_per_s"] = 9_000.0
    for row in mixed.runs[0]["history"]:
        row["seconds"] = 0.01
    text = report([mixed])
    assert rows(section(text, "Summary"))[-1].endswith(" 20 (M2) | 200 (M2) |")
    assert "kind gpu, processor another" in section(text, "Method")
    assert "| M1, M2 |" in section(text, "Method")


def test_where_runs_of_a_setting_differ_the_method_names_their_seeds(report):
    one, other = plain(seeds=3), plain(variant="flipped", seeds=2)
    for run in (one.runs[2], *other.runs):
        run["versions"] = run["versions"] | {"jax": "0.99"}
    row = next(line for line in rows(section(report([one, other]), "Method")) if line.startswith("| jax |"))
    assert row.endswith(" – mobilenet alpha 1 at 224, pretrained (seeds 0 1) |")


def test_a_difference_between_runs_on_other_machines_says_so(report):
    one, other = plain(seeds=2), plain(variant="flipped", seeds=2)
    assert "(another machine)" not in report([one, other])
    other.runs[0]["device"] = {"kind": "gpu"}
    assert rows(section(report([one, other]), "Data, labels"))[-1].count("] (another machine) |") == 2
    one.runs[1]["device"] = {"kind": "gpu"}  # both have both machines, but no pair of runs has one
    assert rows(section(report([one, other]), "Data, labels"))[-1].count("] (another machine) |") == 2


def test_a_report_on_own_data_alone_has_no_claims_and_names_only_what_was_asked_for(report):
    mine = plain(data="my faces")
    for run in mine.runs:
        run["data"]["kind"] = "own"
    assert results.lacking([mine], {}, Path("weights")) == {}
    markdown = report([mine], results.lacking([mine], {}, Path("weights")))
    assert "These runs are on data of one's own: no claim of the paper is judged on them." in markdown
    assert "The paper's claims" not in markdown
    assert "has not run" not in markdown
    assert "The paper's claims" in report([plain(), mine])


def test_variants_without_a_result_stand_in_the_table_of_data_with_the_reason(report):
    setting = dataclasses.replace(plain().setting, variant="ferplus")
    text = report([plain()], {cells.Cell(setting, "pretrained", 0): "weights not supplied: python -m x"})
    table = section(text, "Data, labels")
    assert rows(table)[-1].startswith(
        "| mobilenet alpha 1 at 224, FER+ majority labels, pretrained: weights not supplied |"
    )
    assert "python -m x" in table
    assert "Data, labels" not in report([plain()])


def test_a_seed_without_a_result_is_named_where_others_of_its_setting_have_run(report):
    setting = plain().setting
    text = report([plain(seeds=2)], {cells.Cell(setting, "pretrained", 2): "failed: status 1: no room"})
    summary = rows(section(text, "Summary"))
    assert summary[-1].startswith("| mobilenet alpha 1 at 224, pretrained, seed 2: failed |")
    assert "pretrained, seed 2: failed: status 1: no room" in section(text, "Summary")


def test_classifiers_of_several_seeds_are_told_apart_beside_one_row_of_the_fine_tuned_head(report):
    made = plain(seeds=2)
    for run in made.runs:
        run["classifiers"] = {
            "linear SVM": {"C": 0.1, "val_accuracy": 0.4, "test_accuracy": 0.5, "test_macro_f1": 0.3}
        }
    table = rows(section(report([made]), "Classifiers"))[2:]
    assert [line.split(" | ")[1] for line in table] == [
        "fine-tuned, dense head (all seeds)",
        "linear SVM, seed 0",
        "linear SVM, seed 1",
    ]
    made.runs[1].pop("classifiers")
    assert [line.split(" | ")[1:3] for line in rows(section(report([made]), "Classifiers"))[3:]] == [
        ["linear SVM", "C 0.1"]
    ]


def test_of_equally_many_runs_on_two_machines_the_first_one_s_have_the_speed(report):
    mixed = plain(seeds=2)
    mixed.runs[1]["device"] = {"kind": "gpu"}
    mixed.runs[1]["predict_images_per_s"] = 9_000.0
    assert rows(section(report([mixed]), "Summary"))[-1].endswith(" 20 (M1) | 200 (M1) |")


def test_seconds_and_images_s_name_their_machine_where_there_are_several(report):
    one, other = plain(), plain(variant="flipped")
    assert "(M1)" not in report([one, other])
    for run in other.runs:
        run["device"] = {"kind": "gpu"}
    text = report([one, other])
    names = [row.split("|")[-3:-1] for row in rows(section(text, "Summary"))[-2:]]
    assert [[cell.strip()[-4:] for cell in cells] for cells in names] == [["(M1)"] * 2, ["(M2)"] * 2]
    assert "M2: kind gpu" in section(text, "Summary")


def test_the_paper_s_cell_comes_first_and_variants_have_one_name(report):
    groups = [plain(variant="deduplicated"), plain(split="official"), plain()]
    text = report(groups)
    assert rows(section(text, "Summary"))[2].startswith("| mobilenet alpha 1 at 224, pretrained |")
    assert "deduplicated" not in text
    assert "| split paper, duplicates and leaks dropped | angry" in text
    assert "| another split | another split |" in section(text, "Data")


def test_without_duplicates_both_are_measured_on_the_rows_left_where_the_plain_runs_have_kept_that(report):
    base, without = plain(), plain(variant="deduplicated")
    for content in without.runs:
        content["split"]["sha256_of_int64_indices"] = {
            "train": "5" * 64,
            "validation": "5" * 64,
            "test": "5" * 64,
        }
    text = section(report([base, without]), "Data")
    assert "| +0.0 [+0.0, +0.0] (different test rows) |" in text
    for run in base.runs:
        found = {"images": 600, "accuracy": run["test"]["accuracy"] - 0.01, "macro_f1": 0.5}
        run["test_without_duplicates"] = found
    text = section(report([base, without]), "Data")
    assert "| +1.0 [+1.0, +1.0] |" in text
    del base.runs[-1]["test_without_duplicates"]  # of a seed that only the plain runs have
    text = section(report([base, without.only(without.seeds[:-1])]), "Data")
    assert "| +1.0 [+1.0, +1.0] |" in text


def test_points_are_not_told_over_a_plain_run_of_other_weights_or_data(report):
    for field, value, words in (("init", {"weights": {"weights_sha256": "9"}}, "other weights"),
                                ("data", {"kind": "csv", "sha256": "9" * 64}, "other data")):  # fmt: skip
        base, flipped = plain(), plain(variant="flipped")
        for run in flipped.runs:
            run[field] = run[field] | value
        assert f"| {words} | {words} |" in section(report([base, flipped]), "Data")


def test_points_are_over_the_plain_run_of_the_same_learning_rate(report):
    def at(rate, variant, final):
        g = group("openface", "random", curve(0.1, 0.4), curve(0.1, final), variant=variant)
        return dataclasses.replace(g, setting=dataclasses.replace(g.setting, learning_rate=rate))

    groups = [at(1e-4, "plain", 0.3), at(1e-3, "plain", 0.39), at(1e-3, "flipped", 0.4)]
    assert "| +1.0 [+1.0, +1.0] |" in section(report(groups), "Data")


def test_balanced_rows_say_that_the_train_loss_alone_is_weighted(report):
    text = section(report([plain(), plain(variant="balanced")]), "Table 5")
    for words in ("train loss (weighted) |", "MOFR of loss (train weighted) |", "| validation loss |"):
        assert words in text
    assert "With balanced class weights the train loss is weighted" in text
    assert "weighted" not in section(report([plain()]), "Table 5")


def test_degenerate_runs_are_counted_in_every_name_and_tell_their_features_scale(report):
    some = plain()
    some.runs[1]["test"]["degenerate"] = True
    some.runs[1]["model"]["initial_feature_rms"] = 1.332e-16
    assert wording.label(some) == "mobilenet alpha 1 at 224, pretrained (1 of 3 degenerate)"
    assert wording.label(some, n=True).endswith("(n = 3, 1 of 3 degenerate)")
    assert wording.label(plain(degenerate=True), n=True).endswith("(n = 3, degenerate)")
    text = report([some])
    assert "(1 of 3 degenerate), root mean square of its features before training 1.33e-16" in text
    for title in ("Summary", "Table 5", "Classes", "Method"):
        assert "1 of 3 degenerate" in section(text, title), title


def test_figures_keep_plain_runs_of_one_split_apart_from_variants(report, monkeypatch):
    drawn = []

    def draw(plain, others, settings, title, path, limit):
        drawn.append((title, [g.words for g in plain], [g.words for g in others], settings, limit))
        path.write_bytes(b"")

    monkeypatch.setattr(figures, "plot_histories", draw)
    narrow = plain(alpha=0.25, image_size=96)
    report([
        plain(), narrow, group("mobilenet", "random", curve(0, 0.2), curve(0, 0.2)),
        plain(split="official"), plain(variant="ferplus"), plain(variant="flipped"),
    ])  # fmt: skip
    assert [(base, others) for _, base, others, _, _ in drawn] == [
        (["mobilenet alpha 1 at 224, pretrained", "mobilenet alpha 1 at 224, random", narrow.words], []),
        (
            ["mobilenet alpha 1 at 224, pretrained"],
            [
                "mobilenet alpha 1 at 224, split official, pretrained",
                "mobilenet alpha 1 at 224, FER+ majority labels, pretrained",
            ],
        ),
        (
            ["mobilenet alpha 1 at 224, pretrained"],
            ["mobilenet alpha 1 at 224, mirrored at random, pretrained"],
        ),
    ]
    assert len({title for title, *_ in drawn}) == 3
    assert all(entry[3:] == drawn[0][3:] for entry in drawn)  # the same colours and axes


def test_a_loss_before_training_does_not_squeeze_the_axis_and_the_title_says_so(report):
    high = plain()
    assert "ends below" not in report([high])
    assert figures.loss_limit([high]) == pytest.approx(1.05 * 1.8)  # of epoch 0
    for content in high.runs:
        content["history"][0]["train_loss"] = 14.0
    limit = figures.loss_limit([high])
    assert limit == pytest.approx(1.05 * 1.785)
    assert "; the loss axis ends below the highest of epoch 0." in report([high])
    for content in high.runs:
        content["history"][0]["train_loss"] = limit * 1.2
    assert "ends below" not in report([high]), "little is won by cutting it"


def test_groups_of_one_initialisation_differ_in_their_markers_and_no_whisker_is_cut(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    wide = [plain(), plain(alpha=0.75)]
    for g in wide:
        for content, recall in zip(g.runs, (0.0, 1.0, 1.0), strict=True):
            content["test"]["per_class"]["happy"]["recall"] = recall
    figures.plot_recall(wide, "", tmp_path / "recall.png")
    (axes,) = kept[0].axes
    markers = [bars.lines[0].get_marker() for bars in axes.containers]
    assert len(set(markers)) == 2
    ends = [
        y
        for bars in axes.containers
        for line in bars.lines[2]
        for seg in line.get_segments()
        for y in seg[:, 1]
    ]
    low, high = axes.get_ylim()
    assert low < min(ends) == 0.0
    assert high > max(ends) == 1.0


def test_a_saved_figure_has_a_palette_and_keeps_the_colours_of_its_areas(tmp_path):
    figures.plot_confusions([plain()], "", tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.mode == "P"
        colours = dict(reversed(entry) for entry in image.convert("RGB").getcolors(256))
    for share in (0.0, 1.0):
        assert colours[matplotlib.colormaps["Blues"](share, bytes=True)[:3]] > 10_000


def test_lines_of_one_initialisation_differ_in_lightness_and_stand_before_variants(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    groups = [plain(), plain(alpha=0.75), plain(alpha=0.25)]
    settings = [g.setting for g in groups]
    figures.plot_histories(groups, [plain(variant="flipped")], settings, "", tmp_path / "x.png", 3.0)
    *mine, other = kept[0].axes[0].get_lines()
    light = sorted(figures.contrast(matplotlib.colors.to_rgb(line.get_color()), (0, 0, 0)) for line in mine)
    assert min(b / a for a, b in itertools.pairwise(light)) > 1.5
    assert all(line.get_zorder() > other.get_zorder() for line in mine)


def test_numbers_on_a_confusion_matrix_stand_out():
    for share in np.linspace(0, 1, 101):
        background = matplotlib.colormaps["Blues"](share)[:3]
        colour = {"white": (1, 1, 1), "black": (0, 0, 0)}[figures.text_colour(background)]
        assert figures.contrast(colour, background) > 4.5
    assert figures.contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)


def test_the_csv_files_have_the_numbers_of_every_group_run_and_epoch(report, tmp_path):
    lacking = {cells.Cell(cells.Setting("vggface"), "pretrained", 0): "weights not supplied: get them"}
    report([plain(seeds=3), group("openface", "random", curve(0, 1), curve(0, 1), seeds=1)], lacking)
    with (tmp_path / "summary.csv").open() as file:
        one, several, none = csv.DictReader(file)
    assert (several["backbone"], several["n"], several["seeds"]) == ("mobilenet", "3", "0 1 2")
    assert float(several["test_accuracy_mean"]) == pytest.approx(0.502)
    assert float(several["test_accuracy_sd"]) == pytest.approx(0.002)
    assert float(several["images_per_s"]) == 200
    assert (one["test_accuracy_sd"], one["mcr_accuracy_epochs_1_5_mean"]) == ("", "0.05")
    assert (none["backbone"], none["n"], none["reason"]) == ("vggface", "0", "weights not supplied: get them")
    with (tmp_path / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert len(history) == 4 * 21
    assert (history[-1]["seed"], history[-1]["epoch"]) == ("2", "20")
    assert float(history[-1]["val_accuracy"]) == pytest.approx(0.504)


def test_the_method_page_has_every_hash_in_full_and_names_the_exceptions_of_a_reading(report):
    labelled = plain(variant="ferplus")
    for run in labelled.runs:
        run["data"]["sha256"] += f" {'8' * 64}"
        run["readings"] = {"split": "paper", "seeds": "seed 3 (head), init_seed 3 (backbone)"}
        run["split"]["sha256_of_int64_indices"] = {
            part: str(i) * 64 for i, part in enumerate(("train", "validation", "test"), start=4)
        }
    usual = plain(seeds=5)
    for run in usual.runs:
        run["readings"]["head"] = "flat"
    labelled.runs[0]["readings"]["head"] = "deep"
    text = section(report([usual, labelled]), "Method")
    for digit in "0124568":  # weights, faces, rows of either, FER+'s file
        assert digit * 64 in text
    assert "deep – mobilenet alpha 1 at 224, FER+ majority labels, pretrained (seeds 0) |" in text
    assert "seed N (head), init_seed N (backbone)" in text
    usual.runs[0]["earlier_revisions"] = ["7" * 40]
    usual.runs[1]["classifiers_git_revision"] = "6" * 40 + "-dirty"
    written = f"| {'3' * 12}, {'7' * 12}, {'6' * 12}+ (classifiers) |"
    assert written in section(report([usual, labelled]), "Method")


def test_markdown_and_html_escape_what_tables_hold():
    made = [blocks.Heading("a <b>", 1), blocks.Table(["x", "y"], [["a|b\nc", "<i>"]])]
    assert "a\\|b<br>c" in blocks.markdown(made)
    assert "<td>&lt;i&gt;</td>" in blocks.page(made, None)


def test_a_spread_has_no_deviation_of_one_value_and_nothing_is_minus_zero():
    assert wording.spread(np.array([0.5])) == "0.500"
    assert wording.spread(np.array([0.5, 0.7]), 2) == "0.60 ± 0.14"
    assert wording.spread(np.array([-0.00001]), 4) == "0.0000"
    assert wording.spread(np.array([np.nan])) == "–"
