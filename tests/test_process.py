"""A command starts again with huge pages once, and only where the process is its own."""

import os
import subprocess
import sys

import pytest

from fer_jax import process


@pytest.fixture
def started(monkeypatch):
    """What would be executed, in place of doing it."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "fer_jax.main", "--config=x.py"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("FER_JAX_RESTARTED", raising=False)
    return calls


def test_the_same_command_is_started_again_with_the_setting(started):
    process.restart_with_huge_pages("fer_jax.main")
    ((program, arguments, environment),) = started
    assert program == sys.executable
    assert arguments[1:] == ["-m", "fer_jax.main", "--config=x.py"]
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "FER_JAX_RESTARTED"])
def test_neither_twice_nor_over_a_users_setting(started, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    process.restart_with_huge_pages("fer_jax.main")
    assert not started


def test_a_notebook_that_runs_the_module_is_left_alone(started, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ipykernel_launcher", "-f", "x.json"])
    process.restart_with_huge_pages("fer_jax.main")
    assert not started


def test_the_command_keeps_its_arguments_and_status():
    command = [sys.executable, "-m", "fer_jax.main", "--config=no such.py"]
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "FER_JAX_RESTARTED")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config: no such file no such.py, expected a path such as ")
