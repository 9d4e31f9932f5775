"""The command: bad input ends with one line and status 2, before anything is written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fer_jax.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing"),
        (["--config=configs/none.py"], "configs/none.py"),
        (["--config=README.md"], "README.md"),
        (["--config=configs/openface.py", "--config.foo=1"], "no field foo"),
        (["--config=configs/openface.py", "--config.optimizer.rate=1"], "no field rate"),
        (["--config=configs/openface.py", "--config.epochs=many"], "config.epochs=many"),
        (["--config=configs/openface.py", "--verbosely"], "verbosely"),
        (["--config=configs/openface.py", "epochs=3"], "unexpected argument"),
        (["--config=configs/openface.py", "--config.epochs=0"], "epochs: expected at least 1"),
        (["--config=configs/openface.py", "--config.backbone=facenet"], "facenet"),
        (["--config=configs/openface.py", "--config.init=imagenet"], "init: unknown 'imagenet'"),
        (["--config=configs/openface.py", "--config.image_size=224"], "expected 96"),
        (["--config=configs/openface.py", "--config.class_weight=some"], "class_weight"),
        (["--config=configs/openface.py", "--config.augment.shift=2.0"], "augment.shift"),
        (["--config=configs/mobilenet.py", "--config.alpha=nan"], "alpha: nan"),
        (["--config=configs/openface.py", "--config.seed=-1"], "seed: expected at least 0"),
        (["--config=configs/openface.py", "--config.optimizer.learning_rate=-1.0"], "learning_rate"),
        (["--config=configs/openface.py", "--config.head.dropout=1.5"], "head.dropout"),
        (["--config=configs/openface.py", "--config.head.hidden=(-3,)"], "head.hidden"),
        (["--config=configs/openface.py", "--config.data.scaling=log"], "data.scaling"),
        (["--config=configs/openface.py", "--config.data.path=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_ends_with_one_line_and_status_2(arguments, words, tmp_path):
    workdir = tmp_path / "run"
    done = run(*arguments, f"--workdir={workdir}")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("init:")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert not workdir.exists()


def test_debug_shows_the_traceback(tmp_path):
    done = run(
        "--config=configs/openface.py", "--config.epochs=0", "--debug", f"--workdir={tmp_path / 'run'}"
    )
    assert "Traceback" in done.stderr
    assert "epochs: expected at least 1" in done.stderr


def test_help_lists_the_flags_without_importing_jax():
    code = (
        "import sys; sys.argv = ['fer_jax.main', '--help']\n"
        "import runpy\n"
        "try:\n    runpy.run_module('fer_jax.main', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "assert 'jax' not in sys.modules, 'jax imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--workdir" in done.stdout
    assert "--config" in done.stdout


def fields(config, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        nested = hasattr(value, "items")
        names += fields(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return names


def test_every_config_field_is_read_by_the_program():
    from configs import default

    source = "\n".join(path.read_text() for path in (ROOT / "fer_jax").rglob("*.py"))
    # Read as a whole: keras_adam(**config.optimizer), config.augment[...] through its items.
    assert "keras_adam(**config.optimizer)" in source
    for field in fields(default.get_config()):
        name = field.split(".")[-1]
        if field.startswith("optimizer."):
            assert re.search(rf"\b{name}: float", source), field
        else:
            assert re.search(rf"\.{name}\b", source) or f'"{name}"' in source, field


def test_every_config_file_differs_from_the_default_in_values_alone():
    import importlib

    from configs import default

    names = set(fields(default.get_config()))
    for path in (ROOT / "configs").glob("*.py"):
        if path.stem != "__init__":
            module = importlib.import_module(f"configs.{path.stem}")
            assert set(fields(module.get_config())) == names, path


def test_the_program_never_imports_tensorflow_or_torch():
    code = (
        "import sys, importlib, pkgutil, fer_jax, weights_conversion\n"
        "for package in (fer_jax, weights_conversion):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "found = {'tensorflow', 'torch', 'keras'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
