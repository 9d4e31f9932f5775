"""Trains a backbone on facial emotions, as in "Identification of Modern Facial Emotion Recognition Models".

    python -m fer_jax.main --config=configs/openface.py --workdir=runs/openface

Every field of the configuration can be overridden: --config.epochs=5 --config.data.path=fer2013.csv.
Started again with the same --workdir, a run goes on where it stopped. configs/default.py explains the fields.
"""

import gc
import logging
import os
import re
import sys
from pathlib import Path

from fer_jax import process

if __name__ == "__main__":
    process.restart_with_huge_pages("fer_jax.main")  # before the imports that take time

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from fer_jax.errors import InputError, exit_on_input_error

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, such as configs/openface.py.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; by default runs/ and the name of the configuration."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error in the input.")


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    with exit_on_input_error(_DEBUG.value, "interrupted: the same command goes on where it stopped"):
        if argv[1:]:
            raise InputError(f"unexpected argument {argv[1]!r}, expected flags such as --config.epochs=5")
        if _CONFIG.value is None:
            raise InputError("--config is missing, expected a file such as configs/openface.py")
        _log_to_stderr()
        process.print_any_name()
        gc.set_threshold(100_000, 20, 20)  # imports and traces make much that lives: a tenth of the start
        from fer_jax import cache, train  # after the flags are read, so that --help is quick

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
            raise InputError(_problem(error, argv)) from error


def _problem(error: Exception, argv: list[str]) -> str:
    """What is wrong with the flags or the configuration, in a line."""
    flag_lines = "\n".join(argv[1:])
    given = re.search(r"^--?config[=\n](.+)$", flag_lines, re.MULTILINE)
    file = given[1].split(":")[0] if given else ""
    if file and not os.path.isfile(file):
        return f"--config: no such file {file}"
    # ml_collections says no more than the last part of an unknown field, and perhaps a known one like it.
    said = re.fullmatch(r"""\W*(\w+)\W*?(?:\\n|\n)?(?:Did you mean "(\w+)".*)?\W*""", str(error), re.DOTALL)
    if isinstance(error, AttributeError | KeyError) and said:
        name, like = said.groups()
        field = re.search(rf"^--?(?:no)?config\.((?:\w+\.)*{name})\b", flag_lines, re.MULTILINE)
        hint = f"did you mean {like}?" if like else "expected one of configs/default.py"
        return f"--config: no field {field[1] if field else name}, {hint}"
    if isinstance(error, flags.Error) and "Traceback" not in str(error):
        return " ".join(str(error).split())
    # What a file raised comes as it is, as a cause, or as a traceback in ml_collections' own words.
    cause = error.__cause__ or error
    lines = f"{type(cause).__name__}: {cause}".splitlines()
    return f"--config={file}: {lines[-1].strip()}"


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, os.getcwd())  # `configs` of a checkout
    app.run(main, flags_parser=_parse)
