"""Switches of how a network is traced, on inside a block and for its thread alone."""

import contextlib
import contextvars
from collections.abc import Iterator

LIBRARY_ONLY = contextvars.ContextVar("library_only", default=False)
SHAPES_ALONE = contextvars.ContextVar("shapes_alone", default=False)


def library_only() -> contextlib.AbstractContextManager[None]:
    """Inside, only the library's convolutions and poolings are traced: for programs that run elsewhere."""
    return _on(LIBRARY_ONLY)


def shapes_alone() -> contextlib.AbstractContextManager[None]:
    """Inside, `init` gives zeros, for shapes alone: tracing how tensors are drawn takes as long again."""
    return _on(SHAPES_ALONE)


@contextlib.contextmanager
def _on(switch: contextvars.ContextVar[bool]) -> Iterator[None]:
    token = switch.set(True)
    try:
        yield
    finally:
        switch.reset(token)
