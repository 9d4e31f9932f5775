"""Speed of the backbones, ours and, interleaved with it, the peers': `python -m benchmarks.throughput`.

Each contender is a process of its own, which builds and warms up, then waits; the parent asks them in turn
for a timed block each, so that drift hits all alike and only one computes at a time. With --compile_at_once
several works compile side by side, then each is timed while nothing else runs. Writes throughput.csv (a
row a result, after each one; started again with the same --output, what is there is not measured again but
where a contender failed, and then by all, for the ratios; what another machine measured is refused),
throughput.png and logs/, and prints the table. Median and spread are over rounds; compilation is apart. The
exit status is 1 where a row of the csv has failed, one of an earlier call too. One process at a time measures
into a DIR.
"""

import argparse
import datetime
import math
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import arguments as command_line
from benchmarks.work import PHASES
from benchmarks.worker import PACKAGES
from fer_jax.errors import InputError, exit_on_input_error
from fer_jax.files import locked

if TYPE_CHECKING:
    from benchmarks.measure import Benchmark, Group

BACKBONES = ("openface", "mobilenet", "resnet50", "vggface")
DTYPES = ("float32", "bfloat16")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked.

    Raises:
      InputError: an unknown or missing value, a number out of range, a peer that is not installed.
    """

    phases = "\n".join(f"  {name:<11} {meaning}" for name, meaning in PHASES.items())
    parser = command_line.Parser(
        "python -m benchmarks.throughput",
        description=__doc__,
        epilog=f"phases:\n{phases}\nAt batch 1 only forward, predict and detect run, with latencies.",
    )

    def words(name: str, default: str, known: Sequence[str], help: str) -> None:
        parser.add_argument(
            f"--{name}",
            default=default,
            metavar="A,B",
            type=lambda text: command_line.words(name, text, known, may_be_empty=name == "peers"),
            help=help,
        )

    words("backbones", "openface,mobilenet", BACKBONES, f"of {', '.join(BACKBONES)} (default: first two)")
    words("phases", "forward", tuple(PHASES), "see below (default: forward)")
    words("dtypes", "float32", DTYPES, "of float32, bfloat16 (default: float32)")
    words(
        "peers", "", tuple(PACKAGES), f"of {', '.join(PACKAGES)}; they need the extra `bench` (default: none)"
    )
    parser.add_argument("--batch_sizes", default="1,32", metavar="N,N", type=_numbers, help="default: 1,32")
    parser.add_argument("--alpha", default=1.0, type=float, help="MobileNet's width multiplier")
    parser.add_argument("--image_size", default=0, type=int, help="pixels (default: each backbone's own)")
    parser.add_argument("--repeats", default=5, type=int, help="rounds (default: 5)")
    parser.add_argument("--seconds", default=3.0, type=float, help="length of a timed block (default: 3)")
    parser.add_argument(
        "--compile_at_once",
        default=1,
        type=int,
        metavar="N",
        help="works, with an accelerator and many cores; their memory adds up, compile_s grows (default: 1)",
    )
    parser.add_argument(
        "--full_cell",
        action="store_true",
        help="phase cell: also run ours whole, on drawn faces, in a row of its own, whole_cell",
    )
    parser.add_argument("--output", default="", metavar="DIR", help="default: runs/throughput/ and the time")
    arguments = parser.parse_args(argv)
    for name in ("repeats", "seconds", "compile_at_once"):
        if not 0 < getattr(arguments, name) < math.inf:
            raise InputError(f"--{name}: expected above 0, got {getattr(arguments, name)}")
    for peer in arguments.peers:
        for package in PACKAGES[peer]:
            if not util.find_spec(package):
                raise InputError(
                    f"--peers={peer}: {package} is not installed, try: pip install 'fer-jax[bench]'"
                )
    return arguments


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise InputError(f"--batch_sizes: expected numbers of at least 1 such as 1,32, got {text!r}")
    return numbers


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments say; 1 where a row of the csv has failed, 130 on Ctrl-C."""
    command_line.end_on_signals()
    with exit_on_input_error():
        arguments = parse(argv)
        from benchmarks import measure  # after the arguments are read, so that --help is quick

        groups = measure.plan(arguments)
        time = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        output = Path(arguments.output or f"runs/throughput/{time}")
        with locked(output / ".lock", busy=f"--output: another process measures into {output}"):
            try:
                benchmark = measure.Benchmark(arguments, output)
            except OSError as error:
                raise InputError(f"--output: {error}") from error
            return _measure(benchmark, groups)


def _measure(benchmark: "Benchmark", groups: Sequence["Group"]) -> int:
    """Measures the groups and shows all rows of the csv; returns the exit status."""
    from benchmarks import display, row_files

    status = 0
    try:
        benchmark.run(groups)
    except KeyboardInterrupt:
        status = 130
    path, rows = benchmark.csv.path, benchmark.csv.rows
    plotted = display.plot(rows, path.with_suffix(".png"))
    print(display.table(rows))
    print("ours/: our images/s by those of the row, median over rounds; GFLOP: analytic, an image")
    if plotted:
        print(f"plot: {path.with_suffix('.png')}")
    print(f"csv: {path}")
    return status or int(any(map(row_files.has_failed, rows)))


if __name__ == "__main__":
    sys.exit(main())
