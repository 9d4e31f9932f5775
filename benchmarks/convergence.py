"""The study: every cell of the paper, with error bars, and a verdict on each of its claims.

    python -m benchmarks.convergence --workdir=runs/study --seeds=5

Runs the matrix of backbones, initialisations and seeds, each cell in a process of its own, and writes
DIR/report.html and DIR/report.md. Results of cells are small files in DIR/results; those of several machines
can be put together there, and --report_only makes the report of them. Started again with the same --workdir,
it goes on where it stopped. The data are those of --data, class folders of your own too, else found as in a
run: $FER2013, data/, else the embedded drawn faces. Claims are judged on FER2013 alone.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import weights_conversion
from benchmarks import arguments as command_line
from benchmarks.study import cells
from fer_jax.errors import InputError, exit_on_input_error
from fer_jax.files import replacing

_LISTS = {"backbones": cells.BACKBONES, "inits": cells.INITS, "variants": tuple(cells.VARIANTS)}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked.

    Raises:
      InputError: an unknown or missing value, or a number out of range.
    """

    variants = "\n".join(
        f"  {name:<13} {cells.VARIANT_WORDS[name] or 'as in the paper'}" for name in cells.VARIANTS
    )
    parser = command_line.Parser(
        "python -m benchmarks.convergence",
        description=__doc__,
        epilog=f"variants:\n{variants}",
    )
    add = parser.add_argument
    add("--workdir", default="runs/study", metavar="DIR", help="default: %(default)s")
    for name, known in _LISTS.items():
        default = "plain" if name == "variants" else ",".join(known)
        add(
            f"--{name}",
            default=default,
            metavar="A,B",
            help=f"some of {','.join(known)} (default: {default})",
        )
    add("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1, of head and backbone (default: 3)")
    add("--first_seed", type=int, default=0, metavar="N", help="start from another seed")
    add("--alpha", type=float, default=1.0, help="MobileNet's width multiplier")
    add("--image_size", type=int, default=0, help="pixels (default: each backbone's own)")
    add("--epochs", type=int, default=cells.EPOCHS, help="default: %(default)s")
    add("--data", default="", metavar="PATH", help="the faces (default: as found)")
    add("--learning_rate", type=float, default=cells.LEARNING_RATE, help="default: %(default)s, the paper's")
    add("--split", default="paper", help="paper, paper_val_first, official, fractions (70/10/20)")
    add("--limit", type=int, default=0, metavar="N", help="of the faces, evenly spread; 0: all")
    add(
        "--weights",
        default="weights",
        metavar="DIR",
        help="has openface/, mobilenet_0.75/, ... (default: weights)",
    )
    add("--ferplus", default="", metavar="PATH", help="FER+'s fer2013new.csv, for the variant ferplus")
    add(
        "--classifiers",
        action="store_true",
        help="also fit classifiers that are no neural networks, first seed",
    )
    add("--dry_run", action="store_true", help="print the plan with time, memory and disk, and end")
    add("--report_only", action="store_true", help="make the report of DIR/results")
    add("--no_faces", action="store_true", help="leave FER2013's faces out of the report, to pass it on")
    try:
        arguments = parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    for name, known in _LISTS.items():
        setattr(arguments, name, command_line.words(name, getattr(arguments, name), known))
    if not 0 < arguments.learning_rate < math.inf:
        raise InputError(f"--learning_rate: expected above 0, got {arguments.learning_rate}")
    for name, least in (("seeds", 1), ("first_seed", 0), ("epochs", 1), ("limit", 0)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name}: expected at least {least}, got {getattr(arguments, name)}")
    if arguments.data:
        from fer_jax.data import fer2013

        arguments.data = os.path.abspath(arguments.data)
        fer2013.locate(arguments.data)
    if "ferplus" in arguments.variants and not Path(arguments.ferplus).is_file():
        raise InputError(f"--ferplus: no such file {arguments.ferplus!r}, expected FER+'s fer2013new.csv")
    return arguments


def plan(arguments: argparse.Namespace) -> list[cells.Cell]:
    """The cells asked for, those of one backbone and initialisation together.

    Raises:
      InputError: a size or an alpha that a backbone does not have.
    """
    from fer_jax import models
    from fer_jax.data import splits

    if arguments.split not in splits.NAMES:
        raise InputError(f"--split: unknown {arguments.split!r}, expected one of {', '.join(splits.NAMES)}")
    data, found = _data_name(arguments.data), []
    for backbone in arguments.backbones:
        alpha = arguments.alpha if backbone == "mobilenet" else 1.0
        size = models.build(backbone, alpha=alpha, image_size=arguments.image_size or None).image_size
        for init in arguments.inits:
            for variant in arguments.variants:
                setting = cells.Setting(
                    backbone, alpha, size, arguments.split, variant, arguments.epochs, arguments.limit, data,
                    arguments.learning_rate,
                )  # fmt: skip
                first = arguments.first_seed
                found += [cells.Cell(setting, init, seed) for seed in range(first, first + arguments.seeds)]
    return found


def _data_name(path: str) -> str:
    """What tells cells on class folders from those on others and on a csv, whose name says nothing."""
    from fer_jax.data import sources

    source = sources.find(Path(path)) if path else None
    return os.path.basename(path) if source and source.form != "csv" else ""


def check_data(arguments: argparse.Namespace, planned: Sequence[cells.Cell]) -> None:
    """Raises InputError where the workdir holds results of cells of these names on other data."""
    from fer_jax.data import fer2013, prepared, sources

    path = fer2013.locate(arguments.data)
    source = sources.find(Path(path)) if path else None
    if not source:
        return  # drawn faces
    sha256, study = prepared.source_sha256(source), Study(arguments)
    for result in filter(Path.exists, map(study.result, planned)):
        known = json.loads(result.read_text())["data"]["sha256"].split()[0]  # FER+'s labels follow
        if known != sha256:
            raise InputError(
                f"{result}: was measured on other data (sha256 {known[:12]}, {path} has {sha256[:12]}); "
                "choose another --workdir"
            )


class Study:
    """The cells of a directory: DIR/results/NAME.json once finished, DIR/cells/NAME while at work."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.home = Path(arguments.workdir)
        self._arguments = arguments

    def result(self, cell: cells.Cell) -> Path:
        """The small file of a finished cell."""
        return self.home / "results" / f"{cell.name}.json"

    def weights(self, cell: cells.Cell) -> str:
        """Where its converted weights are to be."""
        name = weights_conversion.directory_name(cell.setting.backbone, cell.setting.alpha)
        return f"{self._arguments.weights}/{name}"

    def is_done(self, cell: cells.Cell) -> bool:
        """Whether all that is asked for of a cell has been measured."""
        path = self.result(cell)
        return path.exists() and (
            not self._wants_classifiers(cell) or "classifiers" in json.loads(path.read_text())
        )

    def _wants_classifiers(self, cell: cells.Cell) -> bool:
        # Where nothing is frozen, or images change in every epoch, no embeddings are kept to fit them on.
        kept = cell.init != "scratch" and cell.setting.variant != "procedure"
        return bool(self._arguments.classifiers and kept and cell.seed == self._arguments.first_seed)

    def missing_weights(self, cell: cells.Cell) -> str:
        """That weights are not there, and the command that would supply them; empty where they are."""
        directory = self.weights(cell)
        if cell.init != "pretrained" or Path(directory).exists():
            return ""
        setting = cell.setting
        command = weights_conversion.download_command(setting.backbone, setting.alpha, directory)
        return f"weights not supplied: {command}"

    def run(self, cell: cells.Cell) -> str:
        """Runs a cell in its own process; returns what went wrong, empty for nothing."""
        workdir, log = self.home / "cells" / cell.name, self.home / "logs" / f"{cell.name}.log"
        for folder in (workdir.parent, log.parent, self.result(cell).parent):
            folder.mkdir(parents=True, exist_ok=True)
        request = workdir.with_name(f".{cell.name}.{os.getpid()}.request")
        content = {
            "spec": cell.spec(),
            "ferplus": self._arguments.ferplus and os.path.abspath(self._arguments.ferplus),
            "data": self._arguments.data,
            "weights": os.path.abspath(self.weights(cell)) if cell.init == "pretrained" else "",
            "workdir": str(workdir),
            "result": str(self.result(cell)),
            "classifiers": self._wants_classifiers(cell),
        }
        with replacing(request) as temporary:
            temporary.write_text(json.dumps(content))
        environment = {"TQDM_MININTERVAL": "30"} | os.environ  # a log, not a screen
        command = [sys.executable, "-m", "benchmarks.study.run_cell", str(request)]
        with log.open("a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            try:
                status = process.wait()
            except BaseException:  # Ctrl-C, SIGTERM: the cell goes on from its checkpoint next time
                process.terminate()
                process.wait()
                raise
            finally:
                request.unlink(missing_ok=True)
        if status == 0 and self.result(cell).exists():
            return ""
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"status {status}: {lines[-1][:300] if lines else 'no output'} (see {log})"


def run(arguments: argparse.Namespace) -> dict[cells.Cell, str]:
    """Runs what is not done, a line a cell; returns how each that failed did."""
    from benchmarks.study.plan import forecast

    study, todo, failed = Study(arguments), [], {}
    planned = plan(arguments)
    check_data(arguments, planned)
    for cell in planned:
        if not study.is_done(cell) and not study.missing_weights(cell):
            todo.append((cell, forecast(cell, arguments.data)))
    expected = _seconds_without_repeats(todo)
    took, done = 0.0, 0.0  # seconds and forecast of the cells that have finished
    for number, (cell, _) in enumerate(todo):
        started = time.perf_counter()
        left = (took / done if done else 1.0) * sum(expected[number:])
        print(f"[{number + 1}/{len(todo)}] {cell.name}: about {_duration(left)} left in all", flush=True)
        problem = study.run(cell)
        seconds = time.perf_counter() - started
        if problem:
            failed[cell] = f"failed: {problem}"
            print(f"  FAILED, {problem}", flush=True)
        else:
            took, done = took + seconds, done + expected[number]
            test = json.loads(study.result(cell).read_text())["test"]["accuracy"]
            print(f"  test accuracy {test:.4f}, took {_duration(seconds)}", flush=True)
    return failed


def _seconds_without_repeats(todo: Sequence[tuple[cells.Cell, Any]]) -> list[float]:
    """Forecast seconds of each cell, features that an earlier one leaves in the cache not counted again."""
    seen, seconds = set(), []
    for cell, cost in todo:
        # Pretrained features do not depend on the seed, nor, but for mirrored ones, on the variant or split.
        seed = None if cell.init == "pretrained" else cell.seed
        setting = cell.setting
        key = (setting.backbone, setting.alpha, setting.image_size, setting.limit, cell.init, seed,
               setting.variant == "flipped")  # fmt: skip
        seconds.append(cost.seconds - (cost.feature_seconds if key in seen else 0))
        seen.add(key)
    return seconds


def dry_run(arguments: argparse.Namespace) -> None:
    """Prints the plan: what each cell would take, what is done, what lacks weights."""
    from benchmarks.study.plan import forecast
    from fer_jax import cache

    study, todo = Study(arguments), []
    print(f"{'cell':<58} {'time':>8} {'memory':>8} {'disk':>8}")
    for cell in plan(arguments):
        if study.is_done(cell):
            print(f"{cell.name:<58} {'done':>8}")
        elif reason := study.missing_weights(cell):
            print(f"{cell.name:<58} {reason}")
        else:
            todo.append((cell, forecast(cell, arguments.data)))
            seconds, cost = _seconds_without_repeats(todo)[-1], todo[-1][1]
            print(f"{cell.name:<58} {_duration(seconds):>8} {cost.memory_gb:5.1f} GB {cost.disk_gb:5.1f} GB")
    total = _duration(sum(_seconds_without_repeats(todo)))
    print(f"{len(todo)} cells to run: about {total}, forecast from operations and a matrix product")
    if todo:
        memory, here = (
            max(cost.memory_gb for _, cost in todo),
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        )
        disk, free = (
            sum(cost.disk_gb for _, cost in todo),
            shutil.disk_usage(_existing(cache.cache_dir())).free,
        )
        print(
            f"at most {memory:.1f} GB of memory at a time, of {here / 1e9:.0f} here; {disk:.1f} GB of disk, "
            f"of {free / 1e9:.0f} free; features.max_gb bounds what is kept of features"
        )


def _existing(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the arguments say; 1 where a cell failed, 130 on Ctrl-C."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process leaves a GPU to the cells
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with exit_on_input_error():
        arguments = parse(argv)
        if arguments.dry_run:
            dry_run(arguments)
            return 0
        failed: dict[cells.Cell, str] = {}
        try:
            if not arguments.report_only:
                failed = run(arguments)
        except KeyboardInterrupt:
            print("stopped; started again, it goes on from here", file=sys.stderr)
            return 130
        from benchmarks.study import pages, results

        study = Study(arguments)
        found = results.load(study.home / "results")
        absent = failed
        if not arguments.report_only:
            absent |= {cell: why for cell in plan(arguments) if (why := study.missing_weights(cell))}
        results.remember_absent(study.home / "results", absent)
        pages.write(study.home, found, results.absent(study.home / "results"), faces=not arguments.no_faces)
        print(f"report: {study.home / 'report.html'}, {study.home / 'report.md'}")
    return int(bool(failed))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a pipe that is closed, as by head, ends the command
    sys.exit(main())
