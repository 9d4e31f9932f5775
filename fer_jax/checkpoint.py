"""Checkpoints of a run: Orbax, written whole or not at all."""

import functools
import time
from pathlib import Path
from typing import Any

import jax

from fer_jax.errors import InputError


class Checkpoints:
    """The latest state of a run under `directory`, with its progress as JSON."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._saved_at = time.monotonic()

    @functools.cached_property
    def _manager(self) -> Any:
        import orbax.checkpoint as ocp  # a fresh run starts without it: 0.2 s

        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        return ocp.CheckpointManager(self._directory.absolute(), options=options)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves the tree `state` and the JSON value `progress`; older checkpoints go once it stands."""
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=items)
        self._saved_at = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last save here, or since the start."""
        return time.monotonic() - self._saved_at

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The latest state, in the structure, shapes and dtypes of `like`, and its progress; or None.

        Raises:
          InputError: Orbax cannot restore it, as where it is damaged.
        """
        if not self._directory.exists():
            return None
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # whatever Orbax and what it stands on raise
            reason = str(error).partition("\n")[0][:200]
            raise InputError(
                f"{self._directory}: cannot be restored ({reason}); if damaged, delete it to begin again"
            ) from error
        return restored.state, restored.progress

    def close(self) -> None:
        """Waits for what Orbax still does in the background."""
        self._manager.close()
