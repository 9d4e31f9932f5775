"""Which pieces of work there are, and how each is measured in all contenders by turns."""

import argparse
import contextlib
import dataclasses
import datetime
import math
import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks import results
from benchmarks.work import (
    CELL_PIECES,
    CLASSES,
    CONTENDERS_OF,
    EPOCHS,
    PREDICTING,
    TRAIN_IMAGES,
    Work,
    operations,
)
from benchmarks.worker import Worker, WorkerError, build_request
from fer_jax import freezing, models
from fer_jax.errors import InputError
from fer_jax.models.classifier import AUTO_POOLING
from fer_jax.process import processor

MATMUL_SIDES = {"cpu": (2048, 4096), "accelerator": (4096, 8192, 16384)}
LATENCY_CALLS = 100
LAST = 4  # layers that learn in a tail step


@dataclasses.dataclass
class Group:
    """The works on one backbone at one batch size and dtype.

    Attributes:
      layers, head: what `operations` counts.
      cell: whether the cell is to be made of the works.
    """

    works: list[Work]
    layers: Sequence[models.Layer]
    head: list[tuple[int, int]]
    cell: bool


def plan(arguments: argparse.Namespace) -> list[Group]:
    """The groups that the arguments ask for.

    Raises:
      InputError: an alpha or a size that a backbone does not have, or nothing to measure.
    """
    jax.config.update("jax_platforms", "cpu")  # here alone: an accelerator is the workers'
    groups = []
    for backbone in arguments.backbones:
        alpha = arguments.alpha if backbone == "mobilenet" else 1.0
        module = models.build(backbone, alpha=alpha, image_size=arguments.image_size or None)
        layers = models.trace_layers(module)
        names = tuple(layer.name for layer in layers)
        tail = tuple(sorted(freezing.learning_layers(names, "last", last=LAST)))
        shape = layers[-1].output_shape
        features = shape[-1] if AUTO_POOLING[backbone] == "avg" else math.prod(shape)
        for dtype in arguments.dtypes:
            for batch in arguments.batch_sizes:
                phases = [p for p in arguments.phases if batch > 1 or p in ("forward", *PREDICTING)]
                asked = {p: None for phase in phases for p in (CELL_PIECES if phase == "cell" else (phase,))}
                works = [
                    Work(
                        phase, dtype, batch, backbone, alpha, module.image_size,
                        {"full_step": names, **dict.fromkeys(("forward", *PREDICTING), ())}.get(phase, tail),
                    )
                    for phase in asked
                ]  # fmt: skip
                if works:
                    groups.append(Group(works, layers, [(features, CLASSES)], "cell" in phases))
    if not groups:
        raise InputError(
            "--batch_sizes: at batch 1 only forward, predict and detect are measured, expected more"
        )
    return groups


def revision() -> str:
    """The commit of the checkout, with a + where files differ; "unknown" outside one."""
    command = ["git", "describe", "--always", "--dirty=+"]
    home = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, cwd=home, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


class Benchmark:
    """Measures one piece of work after the other into a csv in `output`."""

    def __init__(self, arguments: argparse.Namespace, output: Path) -> None:
        self._arguments = arguments
        self._contenders = ("ours", *arguments.peers)
        self._logs = output / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self.csv = results.Csv(output / "throughput.csv")
        self._common = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "revision": revision(),
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        }

    def run(self, groups: Sequence[Group]) -> None:
        """Measures the matrix products that bound all else, then the groups."""
        with self._start("ours") as worker:
            device = worker.ask(do="describe")["device"]
        for dtype in self._arguments.dtypes:
            for side in MATMUL_SIDES["cpu" if device == "cpu" else "accelerator"]:
                self._measure(Work("matmul", dtype, image_size=side), None)
        for group in groups:
            for work in group.works:
                self._measure(work, group)
            if group.cell:
                self._measure_cell(group)

    def _start(self, contender: str) -> Worker:
        return Worker(contender, self._logs / f"{contender}.log")

    def _measure(self, work: Work, group: Group | None) -> None:
        """Adds a row a contender, unless all of them are there."""
        contenders = [c for c in self._contenders if c in CONTENDERS_OF.get(work.phase, self._contenders)]
        key = _key(work)
        found = [self.csv.find(contender=contender, **key) for contender in contenders]
        if all(row and row["rounds"] for row in found):
            return
        name = f"{work.backbone} {work.image_size} {work.phase} {work.dtype} x{work.batch_size}".strip()
        rows, rounds = {}, {contender: list[float]() for contender in contenders}
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=(1 + self._arguments.repeats) * len(contenders), delay=2))
            workers = {}
            for contender in contenders:
                bar.set_description(f"{name}: {contender} builds")
                rows[contender], worker = self._build(contender, work, stack)
                if worker:
                    workers[contender] = worker
                bar.update()
            for _ in range(self._arguments.repeats):
                for contender, worker in workers.items():
                    bar.set_description(f"{name}: {contender}")
                    with _noting_failure(rows[contender]):
                        rounds[contender].append(_images_per_s(worker, rows[contender]))
                    bar.update()
            for contender, worker in workers.items():
                with _noting_failure(rows[contender]):
                    rows[contender] |= _figures(worker, work, rounds[contender])
        for contender, row in rows.items():
            row |= self._common | key
            if row.get("device") == "cpu":
                row["device"] = f"cpu {processor()}"
            if rounds[contender] and work.phase not in PREDICTING:  # where peers have another network
                own_cut = contender == "ours" and work.phase != "uncut_step"
                gflop = operations(work, *((group.layers, group.head) if group else ([], [])), own_cut) / 1e9
                row |= {"gflop_per_image": gflop, "gflop_per_s": gflop * row["images_per_s"]}
        self.csv.replace(rows.values())

    def _build(
        self, contender: str, work: Work, stack: contextlib.ExitStack
    ) -> tuple[results.Row, Worker | None]:
        """The row's beginning, and the process that waits, at half the batch as long as memory is short."""
        batch, note = work.batch_size, ""
        while True:
            row: results.Row = {"contender": contender, "batch_size": batch, "note": note}
            worker = stack.enter_context(self._start(contender))
            try:
                request = build_request(dataclasses.replace(work, batch_size=batch), self._arguments.seconds)
                return row | worker.ask(**request), worker
            except WorkerError as error:
                worker.stop()
                if not error.out_of_memory or batch == 1:
                    return row | {"note": f"failed: {error}"}, None
                note = f"batch halved from {work.batch_size}: out of memory at {batch}"
                batch //= 2

    def _measure_cell(self, group: Group) -> None:
        """Adds the cell's rows: made of those of its phases, and ours in full where that is asked for."""
        key = _key(group.works[0]) | {"phase": "cell"}
        rows = []
        for contender in self._contenders:
            found = {p: self.csv.find(contender=contender, **key | {"phase": p}) for p in CELL_PIECES}
            pieces = {phase: row for phase, row in found.items() if row and row["rounds"]}
            if not {"tail_step", "evaluate"} - set(pieces) and ("extraction" in pieces) == (
                contender == "ours"
            ):
                rows.append(results.cell(pieces))
        if self._arguments.full_cell and rows and rows[0]["contender"] == "ours":
            with self._start("ours") as worker, _noting_failure(rows[0]):
                print("the whole cell, on drawn faces")
                work = dataclasses.asdict(group.works[0])
                seconds = worker.ask(do="full_cell", work=work)["seconds"]
                rows[0] |= results.summary([EPOCHS * TRAIN_IMAGES / seconds])
                rows[0] |= {
                    "seconds": seconds,
                    "compile_s": "",
                    "note": "measured whole, compilation and epoch 0 within",
                }
        self.csv.replace(rows)


def _key(work: Work) -> results.Row:
    names = ("backbone", "alpha", "image_size", "phase", "dtype")
    return {name: getattr(work, name) for name in names} | {"batch_asked": work.batch_size}


@contextlib.contextmanager
def _noting_failure(row: results.Row) -> Iterator[None]:
    try:
        yield
    except WorkerError as error:
        row["note"] = row["note"] if row["note"].startswith("failed") else f"failed: {error}"


def _images_per_s(worker: Worker, row: results.Row) -> float:
    batches = row.get("batches", 1)
    return float(batches * row["batch_size"] / worker.ask(do="time", batches=batches)["seconds"])


def _figures(worker: Worker, work: Work, rounds: list[float]) -> results.Row:
    """The columns that follow from the rounds, and those asked for once."""
    if not rounds:
        return {}
    figures = results.summary(rounds)
    peak = worker.ask(do="memory")["bytes"]
    figures["peak_memory_mb"] = round(peak / 1e6) if peak else ""
    if work.phase in ("forward", *PREDICTING) and work.batch_size == 1:
        times = worker.ask(do="latency", calls=LATENCY_CALLS)["ms"]
        figures["latency_ms_p50"] = statistics.median(times)
        figures["latency_ms_p99"] = statistics.quantiles(times, n=100, method="inclusive")[98]
    return figures
