"""What the commands that parse with argparse share."""

import argparse
from typing import Any

from fer_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `InputError`, and whose help keeps the lines of its texts."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(
            prog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )

    def error(self, message: str) -> Any:
        """Raises InputError."""
        raise InputError(message)
