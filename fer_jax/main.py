"""Trains a backbone on facial emotions, as in "Identification of Modern Facial Emotion Recognition Models".

    python -m fer_jax.main --config=configs/openface.py --workdir=runs/openface

Every field of the configuration can be overridden: --config.epochs=5 --config.data.path=fer2013.csv.
Started again with the same --workdir, a run goes on from its last checkpoint. configs/default.py explains the
fields.
"""

import gc
import logging
import os
import sys
from pathlib import Path

from fer_jax import process

if __name__ == "__main__":
    process.restart_with_huge_pages("fer_jax.main")  # before the imports that take time

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from fer_jax.errors import InputError, exit_on_input_error, is_of_stdout
from fer_jax.flag_errors import problem

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, such as configs/openface.py.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; by default runs/ and the name of the configuration."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error in the input.")


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    goes_on = "interrupted: the same command goes on from the last checkpoint"
    with exit_on_input_error(_DEBUG.value, goes_on, at_once=True):
        if argv[1:]:
            raise InputError(f"unexpected argument {argv[1]!r}, expected flags such as --config.epochs=5")
        if _CONFIG.value is None:
            raise InputError("--config is missing, expected a file such as configs/openface.py")
        _log_to_stderr()
        process.print_any_name()
        gc.set_threshold(100_000, 20, 20)  # imports and traces make much that lives: a tenth of the start
        from fer_jax import cache, train  # after the flags are read, so that --help is quick

        gc.freeze()  # else what was imported is looked through at the end, for half a second
        cache.keep_compiled_programs()
        sys.setswitchinterval(1e-4)  # the data are read while the network is traced
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        train.train_and_evaluate(_CONFIG.value, _WORKDIR.value or f"runs/{name}")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("fer_jax")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    absl.logging.set_verbosity(absl.logging.WARNING)  # Orbax tells much about every checkpoint


def _parse(argv: list[str]) -> list[str]:
    with exit_on_input_error("--debug" in argv):
        try:
            rest = flags.FLAGS(["--help" if flag == "-h" else flag for flag in argv])
            if _CONFIG.value is not None:
                _ = _CONFIG.value.backbone  # a file that cannot be read fails when it is used
            return rest
        except SystemExit as end:
            sys.exit(0 if end.code == 1 else end.code)  # absl ends with 1 after --help
        except Exception as error:  # a configuration is a program, and raises what it likes
            if is_of_stdout(error):  # to which --help writes
                raise
            raise InputError(problem(error, argv)) from error


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, os.getcwd())  # `configs` of a checkout
    app.run(main, flags_parser=_parse)
