"""What absl and ml_collections say of wrong flags, in a line that helps."""

import os
import re

from absl import flags


def problem(error: Exception, argv: list[str]) -> str:
    """What is wrong with the flags or the configuration, in a line."""
    flag_lines = "\n".join(argv[1:])
    given = re.search(r"^--?config[=\n](.+)$", flag_lines, re.MULTILINE)
    file = given[1].split(":")[0] if given else ""
    if file and not os.path.isfile(file):
        return f"--config: no such file {file}, expected a path such as configs/openface.py"
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
