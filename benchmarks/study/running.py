"""Runs the cells of a directory: DIR/results/NAME.json once finished, DIR/cells/NAME while at work."""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import weights_conversion
from benchmarks.study import cells, result_files, results
from fer_jax.data import fer2013, prepared, sources
from fer_jax.errors import InputError
from fer_jax.files import digest, writing_to

COMMAND = (sys.executable, "-m", "benchmarks.study.run_cell")
TOLD_SECONDS = 60.0  # between two lines on how far a cell is


class Study:
    """The cells of a directory, and what the arguments say about them.

    Raises:
      InputError: the directory is a file, or a file in it is damaged.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.home = Path(arguments.workdir)
        if self.home.exists() and not self.home.is_dir():
            raise InputError(f"--workdir: {self.home} is no directory")
        self.results = self.home / "results"
        self.finished = result_files.finished(self.results)
        self.absent = results.absent(self.results)
        self._arguments = arguments

    @functools.cached_property
    def source(self) -> sources.Source | None:
        """Where the faces are read from; None for drawn ones."""
        path = fer2013.locate(self._arguments.data)
        return sources.find(Path(path)) if path else None

    def result(self, cell: cells.Cell) -> Path:
        """The small file of a finished cell, under whatever name it lies there."""
        known = self.finished.get(cell)
        return known.path if known else self.results / f"{cell.name}.json"

    def log(self, cell: cells.Cell) -> Path:
        """What its process prints."""
        return self.home / "logs" / f"{cell.name}.log"

    def weights(self, cell: cells.Cell) -> str:
        """Where its converted weights are to be."""
        return f"{self._arguments.weights}/{results.weights_name(cell.setting)}"

    def is_done(self, cell: cells.Cell) -> bool:
        """Whether all that is asked for of a cell has been measured."""
        known = self.finished.get(cell)
        return known is not None and (not self.wants_classifiers(cell) or "classifiers" in known.run)

    def has_begun(self, cell: cells.Cell) -> bool:
        """Whether a part of its training is done, or all of it."""
        return cell in self.finished or self._workdir(cell).exists()

    def _workdir(self, cell: cells.Cell) -> Path:
        return self.home / "cells" / cell.name

    def wants_classifiers(self, cell: cells.Cell) -> bool:
        """Whether classifiers that are no neural networks are to be fitted."""
        # Where nothing is frozen, or images change in every epoch, no embeddings are kept to fit them on.
        kept = cell.init != "scratch" and cell.setting.variant != "procedure"
        return bool(self._arguments.classifiers and kept and cell.seed == self._arguments.first_seed)

    def lacks_weights(self, cell: cells.Cell) -> bool:
        """Whether it needs converted weights that are not there."""
        return cell.init == "pretrained" and not Path(self.weights(cell)).exists()

    def check(self, planned: Sequence[cells.Cell]) -> None:
        """Raises InputError where a planned cell could not stand beside the results that are there: these are
        of other faces or weights, or its file is another cell's."""
        results.grouped(self.finished)
        for cell in planned:
            path = self.result(cell)
            if cell not in self.finished and path.exists():
                raise InputError(f"{path}: is the result of another cell; give it another name")
        wanted = {(cell.setting, cell.init) for cell in planned}
        for cell, (path, run) in self.finished.items():
            if (cell.setting, cell.init) in wanted:
                self._check_data(path, run)
                self._check_weights(cell, path, run)

    @functools.cached_property
    def _sha256(self) -> str:
        return prepared.source_sha256(self.source) if self.source else ""

    def _check_data(self, path: Path, run: dict[str, Any]) -> None:
        known, *labels = run["data"]["sha256"].split()  # FER+'s labels follow
        ferplus = self._arguments.ferplus
        if labels and Path(ferplus).is_file() and labels != [digest(ferplus)]:
            raise InputError(f"{path}: was measured with other labels than --ferplus={ferplus}")
        drawn = run["data"]["kind"] == "drawn"
        if (known == self._sha256) if self.source else drawn:
            return
        here = f"{self.source} has {self._sha256[:12]}" if self.source else "here are drawn faces"
        raise InputError(
            f"{path}: was measured on other data (sha256 {known[:12]}, {here}; the same faces as csv, zip "
            "and folders have different ones); give it with --data, or choose another --workdir"
        )

    def _check_weights(self, cell: cells.Cell, path: Path, run: dict[str, Any]) -> None:
        if cell.init != "pretrained" or self.lacks_weights(cell):
            return
        here = weights_conversion.load_metadata(self.weights(cell))["weights_sha256"]
        known = (run["init"]["weights"] or {}).get("weights_sha256", "")
        if known != here:
            raise InputError(
                f"{path}: was measured with other weights (sha256 {known[:12]}, {self.weights(cell)} has "
                f"{here[:12]}); give them with --weights, or choose another --workdir"
            )

    def run(self, cell: cells.Cell) -> str:
        """Runs a cell in its own process; returns what went wrong, empty for nothing.

        Raises:
          InputError: the directory cannot be written.
        """
        workdir, log = self._workdir(cell), self.log(cell)
        request = {
            "spec": cell.spec(),
            "ferplus": self._arguments.ferplus and os.path.abspath(self._arguments.ferplus),
            "data": self._arguments.data,
            "weights": os.path.abspath(self.weights(cell)) if cell.init == "pretrained" else "",
            "workdir": str(workdir),
            "result": str(self.result(cell)),
            "classifiers": self.wants_classifiers(cell),
        }
        with writing_to(self.home):
            for folder in (workdir.parent, log.parent):
                folder.mkdir(parents=True, exist_ok=True)
            status, line = _run(COMMAND, json.dumps(request), log)
        if status or not self.result(cell).exists():
            return f"status {status}: {line or 'no output'}"
        try:
            written = result_files.read(self.result(cell))[1]
        except InputError as error:
            return str(error)
        self.finished[cell] = result_files.Finished(self.result(cell), written)
        return ""


def _run(command: Sequence[str], request: str, log: Path) -> tuple[int, str]:
    """Runs a command that reads `request`, prints now and then the last line of its log; returns its exit
    status and that line."""
    environment = {"TQDM_MININTERVAL": "30"} | os.environ  # a log, not a screen
    # By a file without a name: a pipe whose reader has died would end this process with SIGPIPE.
    with log.open("a") as output, tempfile.TemporaryFile("w+") as given:
        start, told = log.stat().st_size, ""
        given.write(request)
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while True:
                try:
                    return process.wait(TOLD_SECONDS), _last_line(log, start)
                except subprocess.TimeoutExpired:
                    line = _last_line(log, start)
                    if line != told:
                        print(f"  {line}", flush=True)
                    told = line
        except BaseException:  # Ctrl-C and other signals: the cell goes on from its checkpoint next time
            process.terminate()
            process.wait()
            raise


def _last_line(log: Path, start: int) -> str:
    """The last line of a log, or state of a bar in it, past its byte `start`; empty where there is none."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 4096))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if re.search(r"\w", line)]
    return re.sub(r"^[A-Z]+:[\w.]+:", "", lines[-1])[:300] if lines else ""


def without_folders(text: str) -> str:
    """With the last part alone of every path, so that it can be passed on."""
    return re.sub(r"[^\s'\"(]*/(?=[^\s/])", "", text)
