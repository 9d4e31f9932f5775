"""How commands end on what a user is meant to read."""

import pytest

from fer_jax.errors import InputError, exit_on_input_error


def test_ctrl_c_ends_with_one_line_and_status_130(capsys):
    with pytest.raises(SystemExit) as end, exit_on_input_error(interrupted="start it again"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "start it again\n"


def test_debug_lets_the_traceback_of_bad_input_through():
    with pytest.raises(InputError), exit_on_input_error(debug=True):
        raise InputError("bad")
