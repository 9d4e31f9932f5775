"""A contender in a process of its own, and the pipe to it: a line of JSON each way.

The process builds and warms up, then waits; the parent asks one process at a time for one timed block.
Its stderr, and what its libraries print, go to a log.

    {"do": "describe"}                            ->  {"device": ..., "versions": ...}
    {"do": "compile", "work": {...}}              ->  {}
    {"do": "choose", "seconds": 3}                ->  {"variant": ..., "compile_s": ..., "batches": ...}
    {"do": "time", "batches": 12}                 ->  {"seconds": ...}
    {"do": "latency", "calls": 50}                ->  {"ms": [...]}
    {"do": "memory"}                              ->  {"bytes": ...}
    {"do": "full_cell", "work": {...}}            ->  {"seconds": ...}

Anything may be answered by {"error": ..., "out_of_memory": true or false}.
"""

import contextlib
import gc
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from benchmarks.work import Contender, Run, Work
from fer_jax import process

CONTENDERS = {
    "ours": "benchmarks.ours",
    "keras-tf": "benchmarks.peers.keras_tf",
    "keras-jax": "benchmarks.peers.keras_jax",
    "torch": "benchmarks.peers.torch_peer",
}
PACKAGES = {"keras-tf": ("tensorflow", "keras"), "keras-jax": ("keras",), "torch": ("torch",)}
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|ResourceExhausted|out of memory|can't allocate memory|bad_alloc", re.I
)


class WorkerError(Exception):
    """A contender failed; `out_of_memory` says whether a smaller batch may help."""

    def __init__(self, message: str, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class Worker:
    """The parent's end. Use as a context manager: the process ends with it."""

    def __init__(self, contender: str, log: Path) -> None:
        self._log = log
        self._cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # Processes share an accelerator, so none may take all of its memory at the start.
        defaults = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            **process.HUGE_PAGES,  # for all alike
        }
        # Nothing that an earlier process compiled is at hand.
        empty = dict.fromkeys(("FER_JAX_CACHE", "TORCHINDUCTOR_CACHE_DIR"), self._cache.name)
        environment = defaults | os.environ | empty
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", CONTENDERS[contender]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the process; may be called again."""
        self._process.kill()
        self._process.communicate()
        self._cache.cleanup()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request, waits for the answer.

        Raises:
          WorkerError: the contender failed, or its process has ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # its end is reported below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            killed = status == -9  # by the kernel, which had no memory left
            raise WorkerError(f"process ended with status {status}, see {self._log}", out_of_memory=killed)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer["out_of_memory"])
        return answer


class _Server:
    """The child's end."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._variants: dict[str, Run] = {}
        self._first_s: dict[str, float] = {}  # what the first call of each took
        self._failures: list[str] = []
        self._run: Run | None = None

    def answer(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request."""
        try:
            return getattr(self, f"_{do}")(**arguments)
        except Exception as error:
            traceback.print_exc()
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return {"error": message, "out_of_memory": is_out_of_memory(error)}

    def _describe(self) -> dict[str, Any]:
        return dict(self._contender.describe())

    def _full_cell(self, work: dict[str, Any]) -> dict[str, Any]:
        return {"seconds": self._contender.full_cell(_work(work))}  # type: ignore[attr-defined]

    def _compile(self, work: dict[str, Any]) -> dict[str, Any]:
        self._variants = self._contender.variants(_work(work))
        self._first_s = self._of_each_variant(lambda run: _seconds(run, 1))
        return {}

    def _of_each_variant(self, measure: Callable[[Run], float]) -> dict[str, float]:
        """What `measure` gives; a variant that fails is left out from then on, unless it is the last."""
        measured = {}
        for name in list(self._variants):
            try:
                measured[name] = measure(self._variants[name])
            except Exception as error:
                if len(self._variants) == 1:
                    raise
                traceback.print_exc()
                self._failures.append(f"{name} failed: {type(error).__name__}")
                del self._variants[name]
        return measured

    def _choose(self, seconds: float) -> dict[str, Any]:
        usual_s = self._of_each_variant(lambda run: _usual_call(run, seconds))
        name, *others = sorted(usual_s, key=lambda name: usual_s[name])
        call_s = usual_s[name]
        compile_s = self._first_s[name] - call_s
        losers = [f"{other} {usual_s[other] / call_s:.2f}x slower" for other in others]
        self._run = self._variants[name]
        self._variants.clear()
        gc.collect()
        _forget_peak()
        # JAX has no such call: its peak on an accelerator has compilation in it.
        getattr(self._contender, "forget_peak", lambda: None)()
        # Features off the disk are gathered, so shapes hang on how many batches there are: a number of them
        # compiles when it comes first, and is never timed then.
        tried = max(1, round(seconds / call_s))
        self._run(tried)
        batches = max(1, round(tried * seconds / _seconds(self._run, tried)))  # many may take less each
        if batches != tried:
            self._run(batches)
        return {
            **self._contender.describe(),
            "layout": self._contender.LAYOUT,
            "variant": "; ".join([name, *losers, *self._failures]),
            "compile_s": compile_s if compile_s > 0 else "",  # else too short to tell from noise
            "batches": batches,
        }

    def _time(self, batches: int) -> dict[str, Any]:
        assert self._run
        if batches > 1:
            self._run(1)  # fetches weights and code back into the caches that another process has used
        return {"seconds": _seconds(self._run, batches)}

    def _latency(self, calls: int) -> dict[str, Any]:
        assert self._run
        return {"ms": [1e3 * _seconds(self._run, 1) for _ in range(calls)]}

    def _memory(self) -> dict[str, Any]:
        return {"bytes": self._contender.peak_memory() or _peak_resident()}


def _work(fields: dict[str, Any]) -> Work:
    return Work(**fields | {"learning": tuple(fields["learning"])})


def _seconds(run: Run, batches: int) -> float:
    start = time.perf_counter()
    run(batches)
    return time.perf_counter() - start


def _usual_call(run: Run, seconds: float) -> float:
    """Seconds of a call that is not the first."""
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < min(1.0, seconds):
        run(1)
        calls += 1
    return (time.perf_counter() - start) / calls


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` is jax's, TensorFlow's, torch's or Python's way to say that memory is full."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(text))


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again: compilation is left out


def _peak_resident() -> int | None:
    """VmHWM of this process in bytes; None where there is no /proc."""
    with contextlib.suppress(OSError, IndexError):
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return None


def serve(contender: Contender, requests: IO[str], answers: IO[str]) -> None:
    """Answers requests until there are no more."""
    server = _Server(contender)
    for line in requests:
        answers.write(json.dumps(server.answer(**json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    process.end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # this process goes first, not its parent
    serve(importlib.import_module(sys.argv[1]), sys.stdin, answers)
