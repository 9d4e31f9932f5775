"""How commands end on what a user is meant to read."""

import os
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
