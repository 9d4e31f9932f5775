"""The command: bad input ends with one line and status 2, before anything is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fer_jax.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


BAD_INPUT = [
    ([], "--config is missing"),
    (["--config=configs/none.py"], "--config: no such file configs/none.py"),
    (["--config=openface"], "no such file openface, expected a path such as configs/openface.py"),
    (["--config", "configs/none.py", "--config.epochs=3"], "--config: no such file configs/none.py"),
    (["--config=README.md"], "README.md"),
    (["--config=configs/openface.py", "--config.foo=1"], "no field foo,"),
    (["--config=configs/openface.py", "--config.optimizer.rate=1"], "no field optimizer.rate,"),
    (["--config=configs/openface.py", "--config.epocs=1"], "no field epocs, did you mean epochs?"),
    (["--config=configs"], "no such file configs"),
    (["--config=configs/openface.py", "--config.epochs=many"], "config.epochs=many"),
    (["--config=configs/openface.py", "--verbosely"], "verbosely"),
    (["--config=configs/openface.py", "epochs=3"], "unexpected argument"),
    (["--config=configs/openface.py", "--config.epochs=0"], "epochs: expected at least 1"),
    (["--config=configs/openface.py", "--config.backbone=facenet"], "facenet"),
    (["--config=configs/openface.py", "--config.init=imagenet"], "init: unknown 'imagenet'"),
    (["--config=configs/openface.py", "--config.image_size=224"], "expected 96"),
    (["--config=configs/openface.py", "--config.class_weight=some"], "class_weight"),
    (["--config=configs/openface.py", "--config.augment.shift=2.0"], "augment.shift"),
    (["--config=configs/openface.py", "--config.checkpoint_minutes=nan"], "checkpoint_minutes: expected"),
    (["--config=configs/mobilenet.py", "--config.alpha=nan"], "alpha: nan"),
    (["--config=configs/openface.py", "--config.seed=-1"], "seed: expected 0 to"),
    (["--config=configs/openface.py", "--config.optimizer.learning_rate=-1.0"], "learning_rate"),
    (["--config=configs/openface.py", "--config.optimizer.learning_rate=1e-3,0.001"], "learning_rate"),
    (["--config=configs/openface.py", "--config.optimizer.learning_rate=1e-4,1.0000001e-4"], "number twice"),
    (
        ["--config=configs/openface.py", "--config.optimizer.learning_rate=True"],
        "numbers above 0, got (True,)",
    ),
    (
        ["--config=configs/openface.py", "--config.seeds=10000000000"],
        "error: seeds: expected 1 to 4294967296",
    ),
    (
        ["--config=configs/openface.py", "--config.features.max_gb=0.0"],
        "features.max_gb: expected a number ab",
    ),
    (["--config=configs/openface.py", "--config.features.max_gb=nan"], "above 0, got nan"),
    (["--config=configs/openface.py", "--config.features.memory_gb=-1.0"], "features.memory_gb: expected at"),
    (["--config=configs/openface.py", "--config.features.memory_gb=nan"], "at least 0, got nan"),
    (["--config=configs/openface.py", "--config.head.pooling=avg"], "head.pooling: openface"),
    (["--config=configs/openface.py", "--config.head.dropout=1.5"], "head.dropout"),
    (["--config=configs/openface.py", "--config.head.hidden=(-3,)"], "head.hidden"),
    (
        ["--config=configs/openface.py", "--config.head.hidden=True"],
        "whole numbers of at least 0, got (True,)",
    ),
    (["--config=configs/openface.py", "--config.head.hidden=0.5"], "head.hidden: expected whole numbers"),
    (["--config=configs/openface.py", "--config.data.scaling=log"], "data.scaling"),
    (["--config=configs/openface.py", "--config.data.path=nowhere.csv"], "nowhere.csv"),
    (
        ["--config=configs/openface.py", "--config.init=random", "--config.data.side=3"],
        "data.side: expected 0, or 8 to 1024",
    ),
    (
        [
            "--config=configs/openface.py",
            "--config.init=random",
            "--config.data.split=fractions",
            "--config.data.fractions=0.5,0.5",
        ],
        "data.fractions: expected three",
    ),
    (
        ["--config=configs/openface.py", "--config.data.fractions=0.8,0.1,0.1"],
        "data.fractions: goes with data.split fractions, got data.split paper",
    ),
    (
        ["--config=configs/openface.py", "--config.freeze.layers=conv1"],
        "freeze.layers: goes with freeze.mode layers, got freeze.mode last",
    ),
    (["--config=configs/openface.py", "--config.freeze.mode=lst"], "freeze.mode: unknown 'lst'"),
]
# Each in a fork that ends at once, since imports and Python's own end take most of the time.
_IN_FORKS = """
import json, os, runpy, sys, tempfile
import fer_jax.train
done = []
for arguments in json.load(sys.stdin):
    with tempfile.TemporaryFile("w+") as errors:
        if not os.fork():
            os.dup2(errors.fileno(), 2)
            sys.argv = ["fer_jax.main", *arguments]
            try:
                runpy.run_module("fer_jax.main", run_name="__main__")
            except SystemExit as end:
                sys.stderr.flush()
                os._exit(end.code)
        status = os.waitstatus_to_exitcode(os.wait()[1])
        errors.seek(0)
        done.append([status, errors.read()])
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """refused[i]: exit status, stderr and run directory of `BAD_INPUT[i]`."""
    workdirs = [tmp_path_factory.mktemp("bad") / "run" for _ in BAD_INPUT]
    cases = [[*a, f"--workdir={w}"] for (a, _), w in zip(BAD_INPUT, workdirs, strict=True)]
    command = [sys.executable, "-c", _IN_FORKS]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(cases), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [(*found, workdir) for found, workdir in zip(json.loads(done.stdout), workdirs, strict=True)]


@pytest.mark.parametrize("case", range(len(BAD_INPUT)), ids=lambda i: BAD_INPUT[i][1])
def test_bad_input_ends_with_one_line_and_status_2(case, refused):
    status, errors, workdir = refused[case]
    lines = [line for line in errors.splitlines() if not line.startswith("init:")]
    assert status == 2, errors
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert BAD_INPUT[case][1] in lines[0]
    assert not workdir.exists()


def test_help_ends_quietly_where_its_reader_has_gone_and_in_a_line_where_the_disk_is_full():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fer_jax.main", "--help"]
    with open(writing, "wb") as closed, open("/dev/full", "wb") as full:
        for stdout, status, words in (
            (closed, 141, ""),
            (full, 2, "error: stdout: cannot be written (No space left on device)\n"),
        ):
            done = subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True)
            assert (done.returncode, done.stderr) == (status, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def get_config():\n    return open('gone.txt')", "No such file or directory: 'gone.txt'"),
        ("def get_config():\n    return int('many')", "ValueError: invalid literal for int() with base 10"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_error_in_one_line(content, words, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(content)
    done = run(f"--config={path}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --config={path}: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path):
    done = run(
        "--config=configs/openface.py", "--config.epochs=0", "--debug", f"--workdir={tmp_path / 'run'}"
    )
    assert "Traceback" in done.stderr
    assert "epochs: expected at least 1" in done.stderr


def fields(config, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        nested = hasattr(value, "items")
        names += fields(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return names


class Reads:
    """A section of a configuration that notes in `seen` the dotted name of every field that is used."""

    def __init__(self, section, seen: set[str], prefix: str = ""):
        self.__dict__.update(_section=section, _seen=seen, _prefix=prefix)

    def __getattr__(self, name):
        if name not in self._section:
            return getattr(self._section, name)  # its methods; to_dict uses nothing
        return self._read(name, sys._getframe(1))

    def __getitem__(self, name):
        return self._read(name, sys._getframe(1))

    def __setattr__(self, name, value):
        setattr(self._section, name, value)

    def items(self):
        """Looked through by several, used by the optimizer alone, which takes all as keywords."""
        used = self._prefix == "optimizer."
        return [(name, self[name] if used else self._section[name]) for name in self._section]

    def copy_and_resolve_references(self):
        return Reads(self._section.copy_and_resolve_references(), self._seen, self._prefix)

    def _read(self, name, frame):
        value = self._section[name]
        if hasattr(value, "items"):
            return Reads(value, self._seen, f"{self._prefix}{name}.")
        if frame.f_code not in looking_at_fields():
            self._seen.add(f"{self._prefix}{name}")
        return value


def looking_at_fields():
    """Functions that check a field or tell its value, and do nothing else with it."""
    from fer_jax import initialisation, results, train
    from fer_jax.data import preprocessing

    checks = (train.check, initialisation.check, initialisation.check_ignored)
    functions = (*checks, results._readings, preprocessing.augments)
    return {f.__code__ for f in functions}


def trace_training_step(config):
    """Goes through a run's forward pass in training without computing it."""
    import jax

    from fer_jax import initialisation
    from fer_jax.forward import make_forward

    init = initialisation.choose(config)
    model, _ = initialisation.build_classifier(config, init, classes=7)
    variables = jax.eval_shape(lambda: initialisation.initial_variables(config, init, model))
    faces = jax.ShapeDtypeStruct((2, 48, 48), "uint8")
    jax.eval_shape(
        make_forward(config, model), variables["params"], variables["batch_stats"], faces, jax.random.key(0)
    )


def test_every_config_field_is_used_by_a_run(tmp_path):
    from configs import default
    from fer_jax import train

    config = default.get_config()
    config.update({"backbone": "mobilenet", "alpha": 0.25, "image_size": 32, "init": "random"})
    config.update({"epochs": 1, "batch_size": 42, "data": {"path": "drawn", "drawn_faces": 420}})
    config.data.unused = 1
    seen: set[str] = set()
    train.train_and_evaluate(Reads(config, seen), tmp_path / "run")
    config.augment.update({"rotation": 0.1, "shift": 0.1, "contrast": 0.1})
    trace_training_step(Reads(config, seen))
    assert set(fields(config)) - seen == {"data.unused"}


def test_every_config_file_differs_from_the_default_in_values_alone():
    import importlib

    from configs import default

    names = set(fields(default.get_config()))
    for path in (ROOT / "configs").glob("*.py"):
        if path.stem != "__init__":
            module = importlib.import_module(f"configs.{path.stem}")
            assert set(fields(module.get_config())) == names, path


def test_the_program_never_imports_tensorflow_or_torch_and_keras_only_to_export():
    code = (
        "import sys, importlib, pkgutil, fer_jax, weights_conversion\n"
        "export = ('.keras_models', '.keras_file', '.onnx_file')  # imported by the formats of these names\n"
        "for package in (fer_jax, weights_conversion):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith(('__main__', *export)):\n"
        "            importlib.import_module(module.name)\n"
        "found = {'tensorflow', 'torch', 'keras'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
