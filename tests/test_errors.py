"""How commands end on what a user is meant to read."""

import os
import signal
import subprocess
import sys

import pytest

from fer_jax.errors import InputError, exit_on_input_error


def test_ctrl_c_ends_with_one_line_and_status_130(capsys):
    with pytest.raises(SystemExit) as end, exit_on_input_error(interrupted="start it again"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "start it again\n"


def test_ctrl_c_may_end_the_process_at_once():
    code = (
        "import atexit\nfrom fer_jax.errors import exit_on_input_error\natexit.register(print, 'ended')\n"
        "with exit_on_input_error(at_once=True): raise KeyboardInterrupt"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("name", ["a" * 300, b"a" * 300])
def test_a_path_that_the_system_refuses_ends_with_one_line_and_status_2(name, capsys):
    with pytest.raises(SystemExit) as end, exit_on_input_error():
        os.stat(name)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {'a' * 300}: File name too long\n"
    with pytest.raises(OSError, match="no file"), exit_on_input_error():
        raise OSError("no file is to blame")


def test_debug_lets_the_traceback_of_bad_input_through():
    with pytest.raises(InputError), exit_on_input_error(debug=True):
        raise InputError("bad")


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
@pytest.mark.parametrize("ending", ["", "    raise SystemExit(0)\n"], ids=["at the end", "as --help ends"])
def test_a_full_disk_under_stdout_is_told_in_one_line_with_status_2(unbuffered, ending):
    code = "from fer_jax.errors import exit_on_input_error\nwith exit_on_input_error():\n    print('row')\n"
    with open("/dev/full", "wb") as full:
        command = [sys.executable, *unbuffered, "-c", code + ending]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: stdout: cannot be written (No space left on device)\n"


def test_ctrl_c_is_heard_while_garbage_is_collected():
    code = """
import collections, ctypes, functools, gc, operator, signal, time, jax
from fer_jax.errors import exit_on_input_error
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
of_c = getattr(ctypes.PyDLL(None), "raise")
with exit_on_input_error():
    collections.deque(map(operator.call, [functools.partial(of_c, 2), gc.collect]), 0)  # in no other place
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_who_hears_ctrl_c_before_hears_it_again_afterwards():
    def mine(*_):
        raise InputError("mine")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with exit_on_input_error():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, mine)
        with exit_on_input_error():
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)
