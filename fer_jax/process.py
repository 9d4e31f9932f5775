"""How the commands set up their own process, and what they run on."""

import contextlib
import ctypes
import functools
import io
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

# glibc (2.35 and later) then asks the kernel for huge pages: without them the large arrays that XLA takes
# and frees in every call cost 10-15 % of a forward pass on CPU in page faults. glibc reads it at start alone.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_DONE = "FER_JAX_RESTARTED"


def restart_with_huge_pages(module: str) -> None:
    """Starts this very command, `python -m MODULE ...`, again with `HUGE_PAGES`, once.

    Nothing happens where the process is another's (a notebook that runs the module) or where glibc's tunables
    are set already.
    """
    ours = sys.orig_argv[1:3] == ["-m", module]
    if sys.platform == "linux" and ours and not {"GLIBC_TUNABLES", _DONE} & set(os.environ):
        environment = os.environ | HUGE_PAGES | {_DONE: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def end_with_parent() -> None:
    """On Linux: this process is terminated when the thread that started it has ended, by SIGKILL too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG of <linux/prctl.h>


def print_any_name() -> None:
    """Has stdout escape what it cannot encode, as stderr does: a file's name may be any bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError, IndexError):
        return Path("/proc/cpuinfo").read_text().split("model name")[1].split(":")[1].split("\n")[0].strip()
    return platform.processor() or platform.machine()


def cpu_cores() -> int | None:
    """How many this process may use, where the system tells; else how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@functools.cache
def git_revision() -> str | None:
    """The commit of the checkout this runs from, "-dirty" where tracked files differ; None elsewhere."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed below another project, it is not of that
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
