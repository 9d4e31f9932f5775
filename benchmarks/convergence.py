"""The study: every cell of the paper, with error bars, and a verdict on each of its claims.

    python -m benchmarks.convergence --workdir=runs/study --seeds=5

Runs the matrix of backbones, initialisations and seeds, each cell in a process of its own, and writes
DIR/report.html and DIR/report.md. Results of cells are small files in DIR/results; those of several machines
can be put together there, and --report_only makes the report of them. Started again with the same --workdir,
it goes on where it stopped; a damaged file there stops it before any cell runs, and its cell runs again once
you have deleted it. The data are those of --data, class folders of your own too, else found as in a
run: $FER2013, data/, else the embedded drawn faces. Claims are judged on FER2013 alone.
"""

import argparse
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import arguments as command_line
from benchmarks.study import cells
from fer_jax.data import splits
from fer_jax.errors import InputError, exit_on_input_error
from fer_jax.files import writing_to

if TYPE_CHECKING:
    from benchmarks.study.plan import Forecast

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
    arguments = parser.parse_args(argv)
    if arguments.split not in splits.NAMES:
        raise InputError(f"--split: unknown {arguments.split!r}, expected one of {', '.join(splits.NAMES)}")
    for name, known in _LISTS.items():
        setattr(arguments, name, command_line.words(name, getattr(arguments, name), known))
    if not 0 < arguments.learning_rate < math.inf:
        raise InputError(f"--learning_rate: expected above 0, got {arguments.learning_rate}")
    for name, least in (("seeds", 1), ("first_seed", 0), ("epochs", 1), ("limit", 0)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name}: expected at least {least}, got {getattr(arguments, name)}")
    if arguments.first_seed > 2**32 - arguments.seeds:
        raise InputError(f"--first_seed: seeds end at 2**32 - 1, got {arguments.first_seed}")
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
      InputError: a size or an alpha that a backbone does not have, a split or labels that the faces do not
        have.
    """
    from fer_jax import models

    data, found = _data_name(arguments), []
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


def _data_name(arguments: argparse.Namespace) -> str:
    """What tells cells on class folders from those on others and on a csv, whose name says nothing.

    Raises:
      InputError: the folders do not have what is asked for of them.
    """
    from fer_jax.data import class_folders, sources

    source = sources.find(Path(arguments.data)) if arguments.data else None
    if not source or source.form == "csv":
        return ""
    name = sources.name_of(arguments.data)
    if "ferplus" in arguments.variants:
        raise InputError(f"--variants=ferplus: FER+'s labels go with FER2013's csv, not with {name}")
    if arguments.split == "official" and not class_folders.class_images(source).usage.any():
        raise InputError(f"--split=official: {name} has no train/ and test/")
    return name


def run(arguments: argparse.Namespace) -> bool:
    """Runs what is not done, with a line at the start and the end of a cell; whether all went well.

    What lacks weights or failed is remembered for the report at once.

    Raises:
      InputError: there are results of other data or weights, or a damaged one, or the directory cannot be
        written.
    """
    from benchmarks.study import results
    from benchmarks.study.plan import forecast, without_repeats
    from benchmarks.study.running import Study, without_folders

    study, planned = Study(arguments), plan(arguments)
    study.check(planned)
    with writing_to(study.results):
        study.results.mkdir(parents=True, exist_ok=True)
    left = [cell for cell in planned if not study.is_done(cell)]
    todo = [cell for cell in left if not study.lacks_weights(cell)]
    before = len(planned) - len(left)
    print(f"{before} of {len(planned)} cells are done, {len(left) - len(todo)} lack weights", flush=True)
    for setting in dict.fromkeys(cell.setting for cell in left if cell not in todo):
        print(f"  {setting.words}: {results.unsupplied(setting, arguments.weights)}", flush=True)
    absent = {cell: results.unsupplied(cell.setting) for cell in left if cell not in todo}
    absent |= {  # of an earlier attempt
        c: why for c, why in study.absent.items() if c in todo and why != results.unsupplied(c.setting)
    }
    settled = {*planned, *study.finished}
    results.remember_absent(study.results, absent, settled)
    costs = [(cell, forecast(cell, study.source, study.wants_classifiers(cell))) for cell in todo]
    expected = [cost.seconds for cost in without_repeats(costs)]
    took, done, well = 0.0, 0.0, True  # seconds and forecast of the cells that ran as a whole
    for number, cell in enumerate(todo):
        started = time.perf_counter()
        about = _duration((took / done if done else 1.0) * sum(expected[number:]))
        count = f"[{before + number + 1}/{before + len(todo)}]"
        print(f"{count} {cell.name}: about {about} left in all, log: {study.log(cell)}", flush=True)
        whole = not study.has_begun(cell)
        problem = study.run(cell)
        seconds = time.perf_counter() - started
        if problem:
            well = False
            absent[cell] = f"failed: {without_folders(problem)}"
            print(f"  FAILED, {problem} (see {study.log(cell)})", flush=True)
        else:
            if whole:
                took, done = took + seconds, done + expected[number]
            absent.pop(cell, None)
            test = study.finished[cell].run["test"]["accuracy"]
            print(f"  test accuracy {test:.4f}, took {_duration(seconds)}", flush=True)
        results.remember_absent(study.results, absent, settled)
    return well


def dry_run(arguments: argparse.Namespace) -> None:
    """Prints the plan: what each cell would take, what is done, what lacks weights."""
    from benchmarks.study import results
    from benchmarks.study.plan import flops_per_second, forecast, without_repeats
    from benchmarks.study.running import Study

    study, planned = Study(arguments), plan(arguments)
    study.check(planned)
    todo: list[tuple[cells.Cell, Forecast]] = []
    print(f"{'cell':<58} {'time':>8} {'memory':>8} {'disk':>8}")
    for cell in planned:
        if study.is_done(cell):
            print(f"{cell.name:<58} {'done':>8}")
        elif study.lacks_weights(cell):
            print(f"{cell.name:<58} {results.unsupplied(cell.setting, arguments.weights)}")
        else:
            todo.append((cell, forecast(cell, study.source, study.wants_classifiers(cell))))
            cost = without_repeats(todo)[-1]
            room = f"{cost.memory_gb:5.1f} GB {cost.disk_gb:5.1f} GB"
            print(f"{cell.name:<58} {_duration(cost.seconds):>8} {room}")
    notes = ["forecast from operations, of cells of which nothing is done yet"]
    if todo:
        notes.append(
            f"a matrix product just now had {flops_per_second() / 1e9:.0f} GFLOP/s, fewer beside other work"
        )
    notes += [] if study.source else ["as for FER2013, which was not found: drawn faces would be taken"]
    costs = without_repeats(todo)
    total = _duration(sum(cost.seconds for cost in costs))
    print(f"{len(todo)} cells to run: about {total}, {'; '.join(notes)}")
    if costs:
        _print_room(costs)


def _print_room(costs: Sequence["Forecast"]) -> None:
    """The most memory, the disk in all, and what of both is here."""
    from fer_jax import cache

    memory = max(cost.memory_gb for cost in costs)
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    disk = sum(cost.disk_gb for cost in costs)
    free = shutil.disk_usage(_existing(cache.cache_dir())).free / 1e9
    print(
        f"at most {memory:.1f} GB of memory at a time, of {here:.0f} here; {disk:.1f} GB of disk, "
        f"of {free:.0f} free; features.max_gb bounds what is kept of features"
    )
    if memory > here:
        print("warning: that is more memory than is here")
    if disk > free:
        print("warning: that is more disk than is free")


def _existing(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3 * 86_400:
        return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.0f} days"


def write_report(arguments: argparse.Namespace) -> None:
    """Makes DIR/report.html and report.md of the results that are there; they themselves stay as they are.

    Raises:
      InputError: there are none, one is damaged, or the directory cannot be written.
    """
    from benchmarks.study import pages, result_files, results

    home = Path(arguments.workdir)
    folder = home / "results"
    if not result_files.files(folder):
        raise InputError(f"--workdir: no results in {folder}")
    groups = results.load(folder)
    absent = results.lacking(groups, results.absent(folder), Path(arguments.weights))
    with writing_to(home):
        pages.write(home, groups, absent, faces=not arguments.no_faces)
    print(f"report: {home / 'report.html'}, {home / 'report.md'}")


def _leave_accelerator() -> None:
    """Keeps this process on the CPU: an accelerator is the cells'."""
    import jax  # not before it is needed: a report goes without

    jax.config.update("jax_platforms", "cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the arguments say; 1 where a cell failed, 130 on Ctrl-C."""
    command_line.end_on_signals()
    words = "stopped; started again, it goes on from here; --report_only reports what is done"
    with exit_on_input_error(interrupted=words):
        arguments, well = parse(argv), True
        if arguments.dry_run:
            _leave_accelerator()
            dry_run(arguments)
            return 0
        if not arguments.report_only:
            _leave_accelerator()
            well = run(arguments)
        write_report(arguments)
    return int(not well)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a pipe that is closed, as by head, ends the command
    sys.exit(main())
