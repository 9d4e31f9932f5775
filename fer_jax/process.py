"""How the commands set up their own process."""

import os
import sys

# glibc (2.35 and later) then asks the kernel for huge pages: without them the large arrays that XLA takes
# and frees in every call cost 10-15 % of a forward pass on CPU in page faults. glibc reads it at start alone.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def restart_with_huge_pages() -> None:
    """Starts this very command again with `HUGE_PAGES`, unless glibc's tunables are set already."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HUGE_PAGES)
