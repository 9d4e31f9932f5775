"""Every command's --help: status 0, the flags listed, and nothing imported that takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("module", "flag", "listed"),
    [
        ("fer_jax.main", "--help", ("--workdir", "--config")),
        ("fer_jax.main", "-h", ("--workdir", "--config")),
        ("fer_jax.main", "--helpfull", ("--workdir", "--config")),
        ("fer_jax.predict", "--help", ("--annotate",)),
        ("weights_conversion.convert", "--help", ("--allow_missing",)),
        ("benchmarks.throughput", "--help", ("--peers",)),
    ],
)
def test_help_lists_the_flags_with_status_0_without_importing_jax(module, flag, listed):
    code = (
        f"import sys; sys.argv = [{module!r}, {flag!r}]\n"
        "import runpy\n"
        f"try:\n    runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert not {'jax', 'flax'} & set(sys.modules), 'jax imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in listed)
