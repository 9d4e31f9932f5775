"""Which pieces of work there are, and how each is measured in all contenders by turns."""

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks import row_files
from benchmarks.operations import head_inputs, operations
from benchmarks.work import (
    CELL_PIECES,
    CLASSES,
    CONTENDERS_OF,
    EPOCHS,
    PREDICTING,
    TRAIN_IMAGES,
    Work,
)
from benchmarks.worker import Worker, WorkerError
from fer_jax import freezing, models
from fer_jax.errors import InputError
from fer_jax.process import cpu_cores, git_revision, processor

MATMUL_SIDES = {"cpu": (2048, 4096), "accelerator": (4096, 8192, 16384)}
LATENCY_CALLS = 50  # a round
LAST = 4  # layers that learn in a tail step


@dataclasses.dataclass
class Group:
    """Works on one backbone at one batch size and dtype that are timed in the same rounds: one, or those that
    a cell is made of, since minutes apart the machine may have another speed.

    Attributes:
      layers, head: what `operations` counts.
      cell: whether the cell is to be made of the works.
    """

    works: list[Work]
    layers: Sequence[models.Layer]
    head_weights: int
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
        size = module.image_size
        names = tuple(layer.name for layer in layers)
        tail = tuple(sorted(freezing.learning_layers(names, "last", last=LAST)))
        learning = {"full_step": names, **dict.fromkeys(("forward", *PREDICTING), ())}
        weights = head_inputs(backbone, layers) * CLASSES
        for dtype in arguments.dtypes:
            for batch in arguments.batch_sizes:
                phases = [p for p in arguments.phases if batch > 1 or p in ("forward", *PREDICTING)]
                pieces = CELL_PIECES if "cell" in phases else ()
                together = [(phase,) for phase in phases if phase not in ("cell", *pieces)]
                for asked in [*together, *([pieces] if pieces else [])]:
                    works = [
                        Work(phase, dtype, batch, backbone, alpha, size, learning.get(phase, tail))
                        for phase in asked
                    ]
                    groups.append(Group(works, layers, weights, asked == pieces))
    if not groups:
        raise InputError(
            "--batch_sizes: at batch 1 only forward, predict and detect are measured, expected more"
        )
    return groups


class Turns:
    """One contender at one piece of work. Use as a context manager: its process ends with it.

    Attributes:
      work: the piece.
      row: what is known by now.
    """

    def __init__(self, contender: str, work: Work, seconds: float, start: Callable[[str], Worker]) -> None:
        self.row: row_files.Row = {"contender": contender, "batch_size": work.batch_size, "note": ""}
        self.work, self._seconds, self._start = work, seconds, start
        self._worker: Worker | None = None
        self._over = False  # no process is to be started any more
        self._rounds: list[float] = []  # images/s, nan for a round that failed
        self._ms: list[float] = []  # latencies of all rounds

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self.stop()

    def stop(self) -> None:
        """Ends the process; may be called again."""
        if self._worker:
            self._worker.stop()
        self._worker = None

    def compile(self) -> None:
        """Starts the process that waits, at half the batch as long as memory is short."""
        if self._over:
            return
        self._worker = self._start(self.row["contender"])
        if self._over:  # since, in the thread that measures
            return self.stop()
        work = dataclasses.replace(self.work, batch_size=self.row["batch_size"])
        try:
            self._worker.ask(do="compile", work=dataclasses.asdict(work))
        except WorkerError as error:
            self.stop()
            if self._halved(error):
                self.compile()

    def choose(self) -> None:
        """Finds the fastest variant. As with a round, nothing else may run meanwhile."""
        if not self._worker:
            return
        try:
            self.row |= self._worker.ask(do="choose", seconds=self._seconds)
        except WorkerError as error:
            self.stop()
            if self._halved(error):
                self.compile()
                self.choose()

    def time(self) -> None:
        """Adds a round. Where memory is short by now, those before count no more: the batch is halved."""
        self._rounds.append(math.nan)
        if not self._worker:
            return
        batches = self.row["batches"]
        try:
            seconds = self._worker.ask(do="time", batches=batches)["seconds"]
            self._rounds[-1] = batches * self.row["batch_size"] / seconds
            if self.work.phase in ("forward", *PREDICTING) and self.work.batch_size == 1:
                self._ms += self._worker.ask(do="latency", calls=LATENCY_CALLS)["ms"]
        except WorkerError as error:
            if self._halved(error):
                self.stop()
                self._rounds = [math.nan] * (len(self._rounds) - 1)
                self.compile()
                self.choose()
                self.time()

    def _halved(self, error: WorkerError) -> bool:
        """Whether half the batch may do, which the row then says; else it says what failed first."""
        batch = self.row["batch_size"]
        if error.out_of_memory and batch > 1 and not self._over:
            note = f"batch halved from {self.work.batch_size}: out of memory at {batch}"
            self.row |= {"batch_size": batch // 2, "note": note}
            return True
        _note_failure(self.row, error)
        return False

    def finish(self) -> None:
        """Adds what follows from the rounds, and the most memory that they took."""
        if not self._worker or all(map(math.isnan, self._rounds)):
            return
        self.row |= row_files.summary(self._rounds)
        if self._ms:
            self.row["latency_ms_p50"] = statistics.median(self._ms)
            self.row["latency_ms_p99"] = statistics.quantiles(self._ms, n=100, method="inclusive")[98]
        try:
            peak = self._worker.ask(do="memory")["bytes"]
            self.row["peak_memory_mb"] = round(peak / 1e6) if peak else ""
        except WorkerError as error:
            _note_failure(self.row, error)


def _note_failure(row: row_files.Row, error: WorkerError) -> None:
    if not row_files.has_failed(row):
        row["note"] = f"failed: {error}"


class Benchmark:
    """Measures one piece of work after the other into a csv in `output`."""

    def __init__(self, arguments: argparse.Namespace, output: Path) -> None:
        self._arguments = arguments
        self._contenders = ("ours", *arguments.peers)
        self._logs = output / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self.csv = row_files.Csv(output / "throughput.csv")
        self._common = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "revision": git_revision() or "unknown",
            "threads": cpu_cores(),
        }

    def run(self, groups: Sequence[Group]) -> None:
        """Measures the matrix products that bound all else, then the groups.

        Raises:
          InputError: JAX does not start, or the csv is of another machine.
        """
        try:
            with self._start("ours") as worker:
                device = worker.ask(do="describe")["device"]
        except WorkerError as error:
            raise InputError(f"JAX does not start: {error}") from error
        self._refuse_other_machines(device)
        sides = MATMUL_SIDES["cpu" if device == "cpu" else "accelerator"]
        products = [Work("matmul", d, image_size=side) for d in self._arguments.dtypes for side in sides]
        todo = [Group([work], [], 0, False) for work in products] + list(groups)
        at_once = self._arguments.compile_at_once
        for start in range(0, len(todo), at_once):
            part = todo[start : start + at_once]
            self._measure([group for group in part if not all(map(self._is_there, group.works))])
            for group in part:
                if group.cell:
                    self._add_cell(group.works[0])
                    if self._arguments.full_cell:
                        self._run_whole(group.works[0])

    def _refuse_other_machines(self, device: str) -> None:
        """Does nothing where the csv is of this machine; a peer may have used another device of it than ours.

        Raises:
          InputError: ours were measured on another device or number of threads.
        """
        here = _machine({"device": _device_name(device), **self._common})
        for row in self.csv.rows:
            if row["contender"] == "ours" and row["device"] and _machine(row) != here:
                raise InputError(
                    f"--output: {self.csv.path} has rows measured on {_machine(row)}, this is {here}; "
                    "choose another --output"
                )

    def _start(self, contender: str) -> Worker:
        return Worker(contender, self._logs / f"{contender}.log")

    def _contenders_of(self, work: Work) -> list[str]:
        return [c for c in self._contenders if c in CONTENDERS_OF.get(work.phase, self._contenders)]

    def _is_there(self, work: Work) -> bool:
        found = [self.csv.find(contender=c, **_key(work)) for c in self._contenders_of(work)]
        return all(row and row["rounds"] and not row_files.has_failed(row) for row in found)

    def _measure(self, todo: Sequence[Group]) -> None:
        """Adds a row a contender to each work: first all compile, then the groups are timed one after the
        other."""
        if not todo:
            return
        with contextlib.ExitStack() as stack:
            # Before the turns, so that its threads outlive the processes, which end with who started them.
            pool = stack.enter_context(ThreadPoolExecutor(self._arguments.compile_at_once))
            turns = [
                [
                    stack.enter_context(Turns(contender, work, self._arguments.seconds, self._start))
                    for work in group.works
                    for contender in self._contenders_of(work)
                ]
                for group in todo
            ]
            compiling = list(itertools.chain(*turns))
            steps = (1 + self._arguments.repeats) * len(compiling)
            bar = stack.enter_context(tqdm(total=steps, delay=2))
            others = f" and {len(todo) - 1} more" if len(todo) > 1 else ""
            bar.set_description(f"{_name(todo[0].works[0])}{others}: compile")
            for _ in pool.map(Turns.compile, compiling):
                bar.update()
            for group, its_turns in zip(todo, turns, strict=True):
                self._take_turns(group, its_turns, bar)

    def _take_turns(self, group: Group, turns: Sequence[Turns], bar: tqdm) -> None:
        """Times those who have compiled, ends their processes, and adds their rows."""
        for turn in turns:
            turn.choose()
        for _ in range(self._arguments.repeats):
            for turn in turns:
                bar.set_description(f"{_name(turn.work)}: {turn.row['contender']}")
                turn.time()
                bar.update()
        for turn in turns:
            turn.finish()
            turn.stop()
        rows = [turn.row | self._common | _key(turn.work) for turn in turns]
        for row, work in zip(rows, (turn.work for turn in turns), strict=True):
            if "device" in row:
                row["device"] = _device_name(row["device"])
            if "rounds" in row and work.phase not in PREDICTING:  # where peers have another network
                own_cut = row["contender"] == "ours" and work.phase != "uncut_step"
                gflop = operations(work, group.layers, group.head_weights, own_cut) / 1e9
                row |= {"gflop_per_image": gflop, "gflop_per_s": gflop * row["images_per_s"]}
        self.csv.replace(rows)

    def _add_cell(self, work: Work) -> None:
        """Adds the cell's rows, made of those of its phases, of which `work` is one."""
        key = _key(work) | {"phase": "cell"}
        rows = []
        for contender in self._contenders:
            before = self.csv.find(contender=contender, **key)
            found = {p: self.csv.find(contender=contender, **key | {"phase": p}) for p in CELL_PIECES}
            pieces = {phase: row for phase, row in found.items() if row and row["rounds"]}
            needed = set(CELL_PIECES) if contender == "ours" else {"tail_step", "evaluate"}
            row = row_files.cell(pieces) if set(pieces) == needed else None
            if row and before and _same_rounds(row, before):
                continue  # a peer's has its ratio, perhaps to an earlier row of ours
            rows += [row] if row else []
        self.csv.replace(rows)

    def _run_whole(self, work: Work) -> None:
        """Adds a row of our whole cell, of which `work` is a piece, where no sound one is there."""
        work = dataclasses.replace(work, phase="whole_cell")
        if self._is_there(work):
            return
        print("the whole cell, on drawn faces")
        note = "compilation and epoch 0 within"
        row: row_files.Row = {"contender": "ours", "batch_size": work.batch_size, "note": note}
        try:
            with self._start("ours") as worker:
                seconds = worker.ask(do="full_cell", work=dataclasses.asdict(work))["seconds"]
                row |= worker.ask(do="describe")
        except WorkerError as error:
            _note_failure(row, error)
        else:
            row |= {"seconds": seconds, "device": _device_name(row["device"])}
            row |= row_files.summary([EPOCHS * TRAIN_IMAGES / seconds])
        self.csv.replace([row | self._common | _key(work)])


def _name(work: Work) -> str:
    return f"{work.backbone} {work.image_size} {work.phase} {work.dtype} x{work.batch_size}".strip()


def _device_name(device: str) -> str:
    return f"cpu {processor()}" if device == "cpu" else device


def _machine(row: row_files.Row) -> str:
    return f"{row['device']}, {row['threads']} threads"


def _same_rounds(row: row_files.Row, other: row_files.Row) -> bool:
    return all(row[name] == other[name] for name in ("date", "rounds"))


def _key(work: Work) -> row_files.Row:
    names = ("backbone", "alpha", "image_size", "phase", "dtype")
    return {name: getattr(work, name) for name in names} | {"batch_asked": work.batch_size}
