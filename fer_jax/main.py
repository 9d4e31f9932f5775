"""Trains a backbone on facial emotions, as in "Identification of Modern Facial Emotion Recognition Models".

    python -m fer_jax.main --config=configs/openface.py --workdir=runs/openface

Every field of the configuration can be overridden: --config.epochs=5 --config.data.path=fer2013.csv.
Started again with the same --workdir, a run goes on where it stopped. configs/default.py explains the fields.
"""

import logging
import os
import sys
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from fer_jax.errors import InputError, exit_on_input_error

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, such as configs/openface.py.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go; by default runs/ and the name of the configuration."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error in the input.")

_UNREADABLE = "Configuration is not available because of an earlier failure to load: "


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    with exit_on_input_error(_DEBUG.value):
        if argv[1:]:
            raise InputError(f"unexpected argument {argv[1]!r}, expected flags such as --config.epochs=5")
        if _CONFIG.value is None:
            raise InputError("--config is missing, expected a file such as configs/openface.py")
        _log_to_stderr()
        import jax  # after the flags are read, so that --help is quick

        from fer_jax import cache, train

        jax.config.update("jax_compilation_cache_dir", str(cache.cache_dir() / "compiled"))
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
    if any(flag.split("=")[0] in ("--help", "-help", "--helpfull", "-h") for flag in argv[1:]):
        return app.parse_flags_with_usage(argv)
    with exit_on_input_error("--debug" in argv):
        try:
            rest = flags.FLAGS(argv)
            if _CONFIG.value is not None:
                _ = _CONFIG.value.backbone  # a file that cannot be read fails when it is used
            return rest
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
            words = " ".join(str(error).split()).removeprefix(_UNREADABLE)
            name = words.strip("\"'")
            if name.isidentifier():  # ml_collections says no more than the name of an unknown field
                words = f"--config: no field {name}, expected one of configs/default.py"
            raise InputError(words) from error


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, os.getcwd())  # `configs` of a checkout
    app.run(main, flags_parser=_parse)
