"""The benchmark's arguments, its protocol with a fake contender, and what it makes of rows. No times."""

import collections
import csv
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from benchmarks import display, measure, ours, row_files, throughput, worker
from benchmarks.operations import operations
from benchmarks.work import Work
from fer_jax import epochs, files, models
from fer_jax.errors import InputError
from fer_jax.models import Layer


@pytest.fixture
def fakes(monkeypatch):
    """Both contenders are tests/benchmarks/fake_contender.py, and matrices are small."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(worker, "CONTENDERS", dict.fromkeys(("ours", "torch"), "fake_contender"))
    monkeypatch.setitem(worker.PACKAGES, "torch", ("json",))
    monkeypatch.setattr(measure, "MATMUL_SIDES", {"cpu": (4,)})


@pytest.fixture
def scripted(monkeypatch):
    """Ours and torch without a process, blocks of a second.

    .errors[contender, n] is raised at the n-th block and ever after, .errors[contender, word] when that is
    asked for; .asked counts requests, .order has those to compile and to time.
    """
    script = types.SimpleNamespace(errors={}, asked=collections.Counter(), order=[])
    answers = {
        "describe": {"device": "cpu"},
        "compile": {},
        "choose": {"device": "cpu", "compile_s": 1.0, "batches": 1},
        "time": {"seconds": 1.0},
        "memory": {"bytes": 5_000_000},
        "full_cell": {"seconds": 1234.0},
    }

    class Scripted(worker.Worker):
        def __init__(self, contender, log):
            self.contender, self.error = contender, None

        def stop(self):
            pass

        def ask(self, do, **request):
            script.asked[self.contender, do] += 1
            script.order += [do] if do in ("compile", "time") else []
            when = script.asked[self.contender, do] if do == "time" else do
            self.error = self.error or script.errors.get((self.contender, when))
            if self.error:
                raise self.error
            return answers[do]

    monkeypatch.setattr(measure, "Worker", Scripted)
    monkeypatch.setitem(worker.PACKAGES, "torch", ("json",))
    monkeypatch.setattr(measure, "MATMUL_SIDES", {"cpu": ()})
    return script


def measured(output, *arguments):
    """Status and rows of OpenFace at batch 8 beside torch, three rounds."""
    arguments = [*arguments, "--backbones=openface", "--batch_sizes=8", "--peers=torch", "--repeats=3"]
    status = throughput.main([*arguments, f"--output={output}"])
    return status, row_files.Csv(output / "throughput.csv").rows


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--backbones=alexnet", "--backbones: unknown 'alexnet'"),
        ("--backbones=", "--backbones: expected some of"),
        ("--phases=backward", "--phases: unknown 'backward'"),
        ("--dtypes=float16", "--dtypes: unknown 'float16'"),
        ("--batch_sizes=0", "--batch_sizes: expected numbers of at least 1"),
        ("--batch_sizes=many", "--batch_sizes: expected numbers of at least 1"),
        ("--repeats=0", "--repeats: expected above 0"),
        ("--repeats=often", "--repeats"),
        ("--seconds=nan", "--seconds: expected above 0"),
        ("--seconds=inf", "--seconds: expected above 0, got inf"),
        ("--alpha=0", "alpha"),
        ("--image_size=17", "image_size"),
        ("--fast", "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_end_with_one_line_and_status_2(argument, words, capsys):
    with pytest.raises(SystemExit) as stop:
        throughput.main([argument, "--output=/nowhere/to/be/written"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_steps_at_batch_1_alone_are_refused():
    with pytest.raises(InputError, match="at batch 1 only"):
        measure.plan(throughput.parse(["--batch_sizes=1", "--phases=full_step"]))


def test_predicting_is_measured_at_batch_1_with_latencies_of_those_who_do_it(fakes, tmp_path):
    arguments = [
        "--phases=predict,detect,full_step", "--backbones=openface", "--batch_sizes=1", "--peers=torch",
        "--repeats=1", "--seconds=0.02", f"--output={tmp_path}",
    ]  # fmt: skip
    assert throughput.main(arguments) == 0
    rows = row_files.Csv(tmp_path / "throughput.csv").rows[2:]
    assert [(row["phase"], row["contender"]) for row in rows] == [("predict", "ours"), ("detect", "ours")]
    for row in rows:
        assert 0 < float(row["latency_ms_p50"]) <= float(row["latency_ms_p99"])
        assert row["gflop_per_image"] == ""


def test_a_peer_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(worker.PACKAGES, "torch", ("no_such_package",))
    with pytest.raises(InputError, match=r"no_such_package is not installed.*fer-jax\[bench\]"):
        throughput.parse(["--peers=torch"])


def test_rows_of_all_contenders_are_written_and_not_measured_again(fakes, tmp_path, monkeypatch):
    arguments = [
        "--backbones=openface", "--phases=forward,cell", "--batch_sizes=1,16", "--peers=torch", "--repeats=2",
        "--seconds=0.05", f"--output={tmp_path}",
    ]  # fmt: skip
    assert throughput.main(arguments) == 0
    with (tmp_path / "throughput.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = [(row["phase"], row["batch_asked"], row["contender"]) for row in rows]
    assert kinds == [
        ("matmul", "1", "ours"), ("matmul", "1", "torch"),
        ("forward", "1", "ours"), ("forward", "1", "torch"),
        ("forward", "16", "ours"), ("forward", "16", "torch"),
        ("extraction", "16", "ours"),
        ("tail_step", "16", "ours"), ("tail_step", "16", "torch"),
        ("evaluate", "16", "ours"), ("evaluate", "16", "torch"),
        ("cell", "16", "ours"), ("cell", "16", "torch"),
    ]  # fmt: skip
    for row in rows:
        assert len(row["rounds"].split()) == 2
        assert bool(row["ours_over_this"]) == (row["contender"] == "torch")
        assert row["device"].startswith("cpu ")
        if row["phase"] != "cell":
            assert row["variant"].startswith("fast; slow ")
            assert row["variant"].endswith("broken failed: RuntimeError")
            assert row["peak_memory_mb"] == "5"
        if row["batch_asked"] == "16":
            assert row["batch_size"] == "8"
            assert row["phase"] == "cell" or row["note"] == "batch halved from 16: out of memory at 16"
    assert bool(rows[2]["latency_ms_p50"])
    assert (tmp_path / "throughput.png").stat().st_size > 0

    monkeypatch.setattr(measure.Turns, "compile", lambda _: pytest.fail("measured again"))
    assert throughput.main(arguments) == 0


def test_what_failed_is_measured_again(fakes, tmp_path, monkeypatch):
    arguments = ["--backbones=vggface", "--batch_sizes=2", f"--output={tmp_path}", "--seconds=0.01"]
    assert throughput.main(arguments) == 1
    monkeypatch.setenv("FAKE_IS_MENDED", "1")
    assert throughput.main(arguments) == 0
    assert all(row["rounds"] for row in row_files.Csv(tmp_path / "throughput.csv").rows)


@pytest.mark.skipif(sys.platform != "linux", reason="a worker ends with a killed parent on Linux alone")
@pytest.mark.parametrize(("number", "status"), [("HUP", 130), ("TERM", 130), ("KILL", -signal.SIGKILL)])
def test_a_signal_ends_the_worker_too_and_leaves_nothing_in_the_temporary_directory(number, status, tmp_path):
    (tmp_path / "stuck.py").write_text(
        "import os, time\n"
        "describe = lambda: {'device': 'cpu', 'versions': ''}\n"
        "def variants(work):\n"
        "    kept = open(os.environ['TOLD'], 'w')\n"
        "    print('compiling', file=kept, flush=True)\n"
        "    time.sleep(600)\n"
    )
    script = """
import signal, sys
from benchmarks import throughput, worker
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
worker.CONTENDERS["ours"] = "stuck"
sys.exit(throughput.main(sys.argv[1:]))
"""
    told, temporary = tmp_path / "told", tmp_path / "tmp"
    os.mkfifo(told)
    temporary.mkdir()
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "TOLD": str(told), "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", script, "--backbones=openface", f"--output={tmp_path}/output"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        with told.open() as lines:
            assert lines.readline() == "compiling\n"
            process.send_signal(getattr(signal, f"SIG{number}"))
            assert lines.read() == ""  # which ends when nobody can write to it any more
        assert process.wait() == status
    if number != "KILL":
        assert list(temporary.iterdir()) == []


def test_a_second_process_on_one_output_is_refused_with_one_line_and_status_2(scripted, tmp_path, capsys):
    with files.locked(tmp_path / ".lock"), pytest.raises(SystemExit) as stop:
        measured(tmp_path, "--phases=forward")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == f"error: --output: another process measures into {tmp_path}\n"
    assert scripted.order == []
    assert measured(tmp_path, "--phases=forward")[0] == 0


def test_a_failed_contender_leaves_a_row_that_says_so(fakes, tmp_path, capsys):
    assert (
        throughput.main(["--backbones=vggface", "--batch_sizes=2", f"--output={tmp_path}", "--seconds=0.01"])
        == 1
    )
    assert "failed: ValueError: no such model" in capsys.readouterr().out


def test_a_contender_that_dies_in_a_round_leaves_the_rounds_before_and_all_other_rows(scripted, tmp_path):
    scripted.errors["torch", 2] = worker.WorkerError("process ended with status -11")
    status, rows = measured(tmp_path, "--phases=forward,full_step")
    assert status == 1
    assert [(row["phase"], row["contender"], row["rounds"]) for row in rows] == [
        ("forward", "ours", "8 8 8"), ("forward", "torch", "8 nan nan"),
        ("full_step", "ours", "8 8 8"), ("full_step", "torch", "8 8 8"),
    ]  # fmt: skip
    assert (rows[1]["images_per_s_min"], rows[1]["ours_over_this"]) == ("8", "1")
    assert rows[1]["note"] == "failed: process ended with status -11"

    scripted.errors.clear()
    status, rows = measured(tmp_path, "--phases=forward,full_step")
    assert status == 0
    assert [row["rounds"] for row in rows] == ["8 8 8"] * 4, "measured again"
    assert scripted.asked["ours", "time"] == 9, "all of its group, and no other"


def test_a_round_without_memory_is_tried_again_at_half_the_batch(scripted, tmp_path):
    scripted.errors["torch", 2] = worker.WorkerError("killed", out_of_memory=True)
    status, (ours, torch) = measured(tmp_path, "--phases=forward")
    assert status == 0
    assert (ours["rounds"], ours["note"]) == ("8 8 8", "")
    assert (torch["rounds"], torch["batch_size"], torch["ours_over_this"]) == ("nan 4 4", "4", "")
    assert torch["note"] == "batch halved from 8: out of memory at 8"


def test_works_compile_side_by_side_and_are_timed_when_none_compiles(scripted, tmp_path):
    status, rows = measured(tmp_path, "--phases=forward,full_step,uncut_step", "--compile_at_once=2")
    assert status == 0
    kinds = [(row["phase"], row["contender"]) for row in rows]
    assert kinds == [(p, c) for p in ("forward", "full_step", "uncut_step") for c in ("ours", "torch")]
    order = [(do, len(list(group))) for do, group in itertools.groupby(scripted.order)]
    assert order == [("compile", 4), ("time", 12), ("compile", 2), ("time", 6)]


def test_the_pieces_of_a_cell_are_timed_in_the_same_rounds(scripted, tmp_path):
    _, rows = measured(tmp_path, "--phases=cell,tail_step,forward")
    phases = ["forward"] * 2 + ["extraction"] + ["tail_step"] * 2 + ["evaluate"] * 2 + ["cell"] * 2
    assert [row["phase"] for row in rows] == phases
    order = [(do, len(list(group))) for do, group in itertools.groupby(scripted.order)]
    assert order == [("compile", 2), ("time", 6), ("compile", 5), ("time", 15)]


def ratio(rows):
    """Ours over torch's, of the cell."""
    return next(r["ours_over_this"] for r in rows if (r["phase"], r["contender"]) == ("cell", "torch"))


def test_a_cell_measured_whole_has_a_row_of_its_own_that_stays_and_is_not_measured_again(scripted, tmp_path):
    for arguments in (["--full_cell"], [], ["--full_cell"]):
        _, rows = measured(tmp_path, "--phases=cell", *arguments)
        [whole] = [row for row in rows if row["phase"] == "whole_cell"]
        assert (whole["contender"], whole["seconds"]) == ("ours", "1234")
        assert whole["note"] == "compilation and epoch 0 within"
        own = next(row for row in rows if (row["phase"], row["contender"]) == ("cell", "ours"))
        assert (len(own["rounds"].split()), own["note"][:12]) == (3, "extrapolated")
    assert scripted.asked["ours", "full_cell"] == 1


def test_a_whole_cell_leaves_the_ratio_of_the_cells_as_it_is(scripted, tmp_path):
    _, rows = measured(tmp_path / "without", "--phases=cell")
    before = ratio(rows)
    assert before
    scripted.errors["ours", "full_cell"] = KeyboardInterrupt()
    status, rows = measured(tmp_path / "with", "--phases=cell", "--full_cell")
    assert (status, ratio(rows), rows[-1]["phase"]) == (130, before, "cell")
    scripted.errors["ours", "full_cell"] = worker.WorkerError("no room")
    status, rows = measured(tmp_path / "with", "--phases=cell", "--full_cell")
    assert (status, ratio(rows)) == (1, before)
    assert (rows[-1]["phase"], rows[-1]["note"]) == ("whole_cell", "failed: no room")
    scripted.errors.clear()
    status, rows = measured(tmp_path / "with", "--phases=cell", "--full_cell")
    assert (status, ratio(rows), rows[-1]["seconds"]) == (0, before, "1234")


def test_a_peer_s_cell_keeps_its_ratio_when_it_is_not_measured_again(scripted, tmp_path):
    _, rows = measured(tmp_path, "--phases=cell")
    path, before = tmp_path / "throughput.csv", ratio(rows)
    path.write_text(path.read_text().replace(rows[0]["date"], "2026-01-01T00:00:00+00:00"))
    assert before
    for arguments in (["--full_cell"], []):
        _, rows = measured(tmp_path, "--phases=cell", *arguments)
        assert ratio(rows) == before


def test_no_number_of_batches_is_timed_when_it_first_comes():
    """Features off the disk have another shape, and compile, for another number of batches."""
    calls = []

    def run(batches):
        calls.append(batches)
        time.sleep(0.02 if batches == 1 else 0.005 * batches)

    contender = types.SimpleNamespace(
        LAYOUT="", variants=lambda work: {"jit": run}, describe=dict, peak_memory=lambda: None
    )
    server = worker._Server(contender)
    server.answer("compile", work=dataclasses.asdict(Work("tail_step")))
    batches = server.answer("choose", seconds=0.1)["batches"]
    *_, before, timed, last = calls
    assert before == timed > 1
    assert last == batches != timed


@pytest.mark.parametrize("phase", ["forward", "predict", "extraction", "tail_step", "evaluate", "uncut_step"])
def test_ours_does_the_work_of_a_phase(phase, tmp_path, monkeypatch):
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path))
    layers = models.layer_names(models.build("mobilenet", alpha=1 / 16, image_size=32))
    learning = () if phase in ("forward", "predict") else tuple(layers[-4:])
    runs = ours.variants(Work(phase, "float32", 2, "mobilenet", 1 / 16, 32, learning))
    for run in runs.values():
        run(1)
        run(3)
    assert runs


@pytest.mark.parametrize("phase", ["matmul", "predict"])
def test_keras_on_jax_is_tried_with_and_without_our_options(phase):
    from benchmarks.peers import keras_jax

    runs = keras_jax.variants(Work(phase, batch_size=2, image_size=8))
    for run in runs.values():
        run(1)
    assert list(runs) == ["jit", "jit with our options"]


def test_a_batch_larger_than_the_trial_s_faces_is_evaluated_whole(monkeypatch):
    evaluated = []
    monkeypatch.setattr(epochs.Device, "evaluate", lambda *inputs: evaluated.append(inputs[2:4]))
    layers = models.layer_names(models.build("mobilenet", alpha=1 / 16, image_size=32))
    runs = ours.variants(Work("evaluate", "float32", 1030, "mobilenet", 1 / 16, 32, tuple(layers[-4:])))
    runs["jit"](2)
    [(rows, size)] = evaluated
    assert (len(rows), size, set(rows)) == (2060, 1030, set(range(1024)))


def test_no_process_finds_what_an_earlier_one_compiled(tmp_path, monkeypatch):
    environments = []

    def start(command, env, **_):
        environments.append(env)
        return types.SimpleNamespace(kill=lambda: None, communicate=lambda: None)

    for name in ("TORCHINDUCTOR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR", "FER_JAX_CACHE"):
        monkeypatch.setenv(name, "/kept")
    monkeypatch.setattr(worker.subprocess, "Popen", start)
    for _ in range(2):
        with worker.Worker("torch", tmp_path / "log"):
            assert os.listdir(environments[-1]["TORCHINDUCTOR_CACHE_DIR"]) == []
    for name in ("TORCHINDUCTOR_CACHE_DIR", "FER_JAX_CACHE"):
        assert len({"/kept", *(env[name] for env in environments)}) == 3
    assert not any("JAX_COMPILATION_CACHE_DIR" in env for env in environments)


def test_a_csv_that_cannot_be_written_ends_with_one_line_and_status_2(
    scripted, tmp_path, capsys, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_files.csv, "DictWriter", full)
    with pytest.raises(SystemExit) as stop:
        measured(tmp_path)
    assert stop.value.code == 2
    assert "throughput.csv: cannot be written (No space left on device)" in capsys.readouterr().err


def refused(output, capsys):
    """The one line of an error, after which the csv is as it was."""
    path = output / "throughput.csv"
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stop:
        measured(output, "--phases=forward,full_step")
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert f"--output: {path}" in error
    assert path.read_bytes() == before
    return error


@pytest.mark.parametrize(
    ("name", "value", "theirs", "mine"),
    [
        ("processor", "Other 9", "cpu This 1, 2 threads", "cpu Other 9, 2 threads"),
        ("cpu_cores", 64, "cpu This 1, 2 threads", "cpu This 1, 64 threads"),
    ],
)
def test_a_csv_of_another_machine_is_refused_before_anything_is_measured(
    name, value, theirs, mine, scripted, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(measure, "processor", lambda: "This 1")
    monkeypatch.setattr(measure, "cpu_cores", lambda: 2)
    measured(tmp_path, "--phases=forward")
    monkeypatch.setattr(measure, name, lambda: value)
    scripted.order.clear()
    error = refused(tmp_path, capsys)
    assert f"has rows measured on {theirs}, this is {mine}; choose another --output" in error
    assert scripted.order == []


def test_a_peer_on_another_device_of_this_machine_and_what_never_ran_are_no_other_machine_s(
    scripted, tmp_path
):
    measured(tmp_path, "--phases=forward")
    csv_of_rows = row_files.Csv(tmp_path / "throughput.csv")
    ours, torch = csv_of_rows.rows
    csv_of_rows.replace(
        [torch | {"device": "GPU"}, ours | {"phase": "full_step", "device": "", "rounds": ""}]
    )
    status, rows = measured(tmp_path, "--phases=forward,full_step")
    assert status == 0
    assert [row["device"] == "GPU" for row in rows if row["phase"] == "forward"] == [False, True]
    assert all(row["rounds"] for row in rows)


@pytest.mark.parametrize(
    ("column", "text", "words"),
    [
        ("rounds", "8 8,5 8", "rounds: expected numbers above 0 or nan, got '8 8,5 8'"),
        ("rounds", "8 0 8", "rounds: expected numbers above 0 or nan"),
        ("images_per_s", "8,5", "images_per_s: expected a number, got '8,5'"),
        ("images_per_s_max", "", "images_per_s_max: expected a number, got ''"),
        ("images_per_s_min", "9", "images_per_s: expected 9 to 8, its min and max, got 8"),
        ("latency_ms_p50", "1,5", "latency_ms_p50: expected a number or nothing, got '1,5'"),
        ("gflop_per_s", "inf", "gflop_per_s: expected a number or nothing, got 'inf'"),
        ("batch_asked", "8.0", "batch_asked: expected a whole number, got '8.0'"),
        ("date", "", "date: expected text that is not empty"),
        ("note", "\udcff", "not UTF-8 text"),
        ("note", None, "expected 29 fields"),
        ("more", "", "expected 29 fields"),
        ("note", "x" * 200_000, "field larger than field limit"),
    ],
)
def test_a_damaged_csv_is_refused_by_file_and_line_before_anything_is_measured(
    column, text, words, scripted, tmp_path, capsys
):
    path = tmp_path / "throughput.csv"
    _, (ours, torch) = measured(tmp_path, "--phases=forward")
    damaged = [value for value in (torch | {column: text}).values() if value is not None]
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([row_files.COLUMNS, ours.values(), damaged])
    scripted.order.clear()
    error = refused(tmp_path, capsys)
    assert f"{path}, line 3: {words}" in error
    assert scripted.order == []


def test_a_csv_is_utf_8_with_crlf_in_any_locale(tmp_path):
    script = """
import sys
from pathlib import Path
from benchmarks.row_files import COLUMNS, Csv
row = dict.fromkeys(COLUMNS, "") | {"batch_size": "1", "batch_asked": "1", "note": "\\xe9"}
Csv(Path(sys.argv[1])).replace([row])
assert Csv(Path(sys.argv[1])).rows == [row]
"""
    path = tmp_path / "throughput.csv"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", script, str(path)], env=os.environ | locale, check=True)
    assert path.read_bytes().endswith(",\xe9\r\n".encode())


def test_every_csv_that_the_readme_tells_of_is_read():
    paths = list((Path(row_files.__file__).parent / "results").glob("throughput*/*.csv"))
    assert len(paths) >= 8
    assert all(row_files.Csv(path).rows for path in paths)


def test_a_matrix_product_of_no_speed_is_no_ceiling():
    row = dict.fromkeys(row_files.COLUMNS, "") | {
        "phase": "matmul",
        "dtype": "float32",
        "gflop_per_s": "0",
    }
    row_files.add_mfu([row])
    assert row["mfu"] == ""


def test_widths_of_mobilenet_are_told_apart(tmp_path, monkeypatch):
    blank = dict.fromkeys(row_files.COLUMNS, "") | {
        "contender": "ours", "backbone": "mobilenet", "image_size": "96", "phase": "forward",
        "dtype": "float32", "batch_asked": "32", "rounds": "1", "date": "2026-01-01",
        "images_per_s": "1", "images_per_s_min": "1", "images_per_s_max": "1",
    }  # fmt: skip
    rows = [blank | {"alpha": alpha} for alpha in ("1", "0.25")]
    lines = display.table(rows).splitlines()
    assert [line.split(" 96 ")[0].strip() for line in lines[1:]] == ["mobilenet", "mobilenet 0.25"]
    titles = []
    monkeypatch.setattr(
        display, "_plot_bars", lambda axes, here, bars: titles.append((axes.get_title(), len(here)))
    )
    display.plot(rows, tmp_path / "plot.png")
    assert titles == [("mobilenet 96, forward", 1), ("mobilenet 0.25 96, forward", 1)]


def test_a_csv_of_something_else_is_refused(tmp_path):
    (tmp_path / "throughput.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as stop:
        throughput.main([f"--output={tmp_path}"])
    assert stop.value.code == 2


LAYERS = [
    Layer("a", (4, 4, 8), {"kernel": (3, 3, 2, 8)}),
    Layer("b", (4, 4, 8), {"kernel": (1, 1, 8, 8)}),
    Layer("c", (4, 4, 8), {}),
    Layer("d", (4, 4, 2), {"kernel": (1, 1, 8, 2)}),
]
A, B, D, HEAD = 2 * 16 * 144, 2 * 16 * 64, 2 * 16 * 16, 2 * 2 * 7


@pytest.mark.parametrize(
    ("phase", "learning", "own_cut", "expected"),
    [
        ("forward", (), True, A + B + D),
        ("evaluate", ("b", "c", "d"), False, A + B + D + HEAD),
        ("evaluate", ("b", "c", "d"), True, B + D + HEAD),
        ("extraction", ("b", "c", "d"), True, A),
        ("uncut_step", ("b", "c", "d"), False, A + 2 * B + 3 * D + 3 * HEAD),
        ("tail_step", ("b", "c", "d"), True, 2 * B + 3 * D + 3 * HEAD),
        ("tail_step", ("c", "d"), True, 2 * D + 3 * HEAD),
        ("full_step", ("a", "b", "c", "d"), False, 2 * A + 3 * B + 3 * D + 3 * HEAD),
    ],
)
def test_operations_count_what_a_phase_needs(phase, learning, own_cut, expected):
    assert operations(Work(phase, learning=learning), LAYERS, 14, own_cut) == expected


def test_operations_of_vgg_face_are_those_of_its_layers():
    layers = models.trace_layers(models.build("vggface"))
    assert operations(Work("forward"), layers, 0, True) == sum(layer.flops for layer in layers)


def test_a_cell_adds_up_the_images_of_its_phases():
    rows = {
        phase: dict.fromkeys(row_files.COLUMNS, "") | {"rounds": rates, "compile_s": "1"}
        for phase, rates in {"extraction": "10 20", "tail_step": "100 200", "evaluate": "50 50"}.items()
    }
    seconds = [35_887 / 10 + 502_420 / 100 + 78_957 / 50, 35_887 / 20 + 502_420 / 200 + 78_957 / 50]
    ours = row_files.cell(rows)
    assert ours["seconds"] == pytest.approx(sum(seconds) / 2)
    assert ours["compile_s"] == 3
    theirs = row_files.cell({phase: row for phase, row in rows.items() if phase != "extraction"})
    assert theirs["seconds"] == pytest.approx(sum(seconds) / 2 - 35_887 * (1 / 10 + 1 / 20) / 2)


def test_a_cell_leaves_out_rounds_that_failed_and_says_where_pieces_were_measured_apart():
    blank = dict.fromkeys(row_files.COLUMNS, "") | {"compile_s": "1", "date": "monday", "revision": "a"}
    blank["batch_size"] = "32"
    step, evaluate = blank | {"rounds": "100 nan 200"}, blank | {"rounds": "50 50 50"}
    cell = row_files.cell({"tail_step": step, "evaluate": evaluate})
    assert cell["seconds"] == pytest.approx((502_420 / 100 + 502_420 / 200) / 2 + 78_957 / 50)
    assert cell["note"] == "extrapolated from images/s of tail_step, evaluate"
    later = evaluate | {"date": "tuesday", "revision": "b"}
    cell = row_files.cell({"tail_step": step, "evaluate": later})
    assert (cell["date"], cell["revision"]) == ("monday tuesday", "a b")
    assert cell["note"].endswith(", measured apart")
    assert row_files.cell({"tail_step": step, "evaluate": blank | {"rounds": "nan 50 nan"}}) is None
    halved = row_files.cell({"tail_step": step, "evaluate": evaluate | {"batch_size": "16"}})
    assert halved["note"].endswith(", at batches of 32, 16")
    whole = row_files.cell({"tail_step": step, "evaluate": evaluate})
    for contenders in (("ours", "torch"), ("torch", "ours")):
        rows = [piece | {"contender": c} for piece, c in zip((halved, whole), contenders, strict=True)]
        row_files.add_ratios(rows)
        assert [row["ours_over_this"] for row in rows] == ["", ""], "of other batches"


def test_a_ratio_leaves_out_rounds_that_failed():
    blank = dict.fromkeys(row_files.COLUMNS, "")
    ours = blank | {"contender": "ours", "rounds": "100 10 100"}
    peers = [blank | {"contender": "torch", "rounds": rounds} for rounds in ("50 nan 50", "nan nan")]
    row_files.add_ratios([ours, *peers])
    assert [peer["ours_over_this"] for peer in peers] == ["2", ""]


def test_a_ratio_stays_that_of_its_own_rounds_when_ours_are_measured_again():
    blank = dict.fromkeys(row_files.COLUMNS, "")
    peer = blank | {"contender": "torch", "rounds": "5 10", "date": "monday", "ours_over_this": "2"}
    row_files.add_ratios([blank | {"contender": "ours", "rounds": "50 100", "date": "tuesday"}, peer])
    assert peer["ours_over_this"] == "2"


def test_a_ratio_to_a_cell_that_was_measured_whole_stays_in_a_csv_of_the_earlier_form():
    path = Path(row_files.__file__).parent / "results/throughput/whole_cell.csv"
    rows = row_files.Csv(path).rows
    before = [row["ours_over_this"] for row in rows if row["phase"] == "cell"]
    row_files.add_ratios(rows)
    assert [row["ours_over_this"] for row in rows if row["phase"] == "cell"] == before
    assert sum(map(bool, before)) == 3


def test_a_ratio_is_the_median_of_those_within_a_round():
    blank = dict.fromkeys(row_files.COLUMNS, "")
    ours = blank | {"contender": "ours", "rounds": "10 20 40"}
    peer = blank | {"contender": "torch", "rounds": "5 10 10"}
    row_files.add_ratios([ours, peer])
    assert (ours["ours_over_this"], peer["ours_over_this"]) == ("", "2")


def test_torch_s_words_for_full_memory_are_known():
    assert worker.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert worker.is_out_of_memory(MemoryError())
    assert not worker.is_out_of_memory(ValueError("shapes differ"))
