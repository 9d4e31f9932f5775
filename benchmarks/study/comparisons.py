"""Differences between groups of runs, with their intervals, and what they say for or against a claim."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.study.results import Group

CONFIDENCE = 0.95

Measure = Callable[[Group], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Effect:
    """A mean difference with its standard error and degrees of freedom, and how many seeds it rests on."""

    mean: float
    error: float
    freedom: float
    n: str

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Where the mean lies by Student's distribution."""
        from scipy.stats import t

        half = float(t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.mean:+.4f} [{low:+.4f}, {high:+.4f}], n = {self.n}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One thing that a claim needs.

    Attributes:
      words: what is compared.
      found: the effect; or a fact; or why there is none.
      bound: what the effect is to be above, or below where `below`.
    """

    words: str
    found: Effect | bool | str
    bound: float = 0.0
    below: bool = False

    def says(self, family: int) -> bool | None:
        """Yes, no, or open, as one of `family` comparisons with an effect."""
        effect = self.found
        if not isinstance(effect, Effect):
            return None if isinstance(effect, str) else effect

        def lies(below: bool, confidence: float) -> bool:
            low, high = effect.interval(confidence)
            return high < self.bound if below else low > self.bound

        if lies(self.below, CONFIDENCE):
            return True
        return False if lies(not self.below, 1 - (1 - CONFIDENCE) / family) else None

    def __str__(self) -> str:
        found = ("yes" if self.found else "no") if isinstance(self.found, bool) else self.found
        return f"{self.words}: {found}"


def paired(a: Group, b: Group, measure: Measure) -> Effect | str:
    """a - b over the seeds that both have, or why there is none."""
    seeds = sorted(set(a.seeds) & set(b.seeds))
    if len(seeds) < 2:
        return "fewer than two seeds that both have"
    left, right = measure(a), measure(b)
    return mean_effect([left[a.seeds.index(s)] - right[b.seeds.index(s)] for s in seeds])


def mean_effect(values: Sequence[float] | np.ndarray) -> Effect | str:
    """The mean of each run's values, or why there is none."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return "fewer than two seeds"
    if not np.isfinite(x).all():
        return "a run's value is no number"
    return Effect(float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x)), len(x) - 1, str(len(x)))


def unpaired(a: Group, b: Group, measure: Measure) -> Effect | str:
    """a - b by Welch, or why there is none."""
    sides = [measure(a), measure(b)]
    for side in sides:
        if isinstance(reason := mean_effect(side), str):
            return reason
    parts = [float(x.var(ddof=1)) / len(x) for x in sides]
    total = sum(parts)
    spread = sum(part**2 / (len(x) - 1) for part, x in zip(parts, sides, strict=True))
    n = f"{len(sides[0])} and {len(sides[1])}"
    mean = float(sides[0].mean() - sides[1].mean())
    return Effect(mean, math.sqrt(total), total**2 / spread if spread else 1.0, n)


def unlike(a: Group, b: Group) -> str:
    """Why two groups cannot be compared, in words; empty where they can."""
    one, other = a.runs[0], b.runs[0]
    if one["data"]["sha256"] != other["data"]["sha256"]:
        return "measured on different data files"
    if one["split"]["sha256_of_int64_indices"] != other["split"]["sha256_of_int64_indices"]:
        return "measured on different splits"
    return ""


def rate(column: str, first: int, last: int) -> Measure:
    """The mean change an epoch of a history's column, or of train less validation accuracy for "gap"."""

    def measure(group: Group) -> np.ndarray:
        if column == "gap":
            values = group.history("train_accuracy") - group.history("val_accuracy")
        else:
            values = group.history(column)
        return (values[:, last] - values[:, first]) / (last - first)

    return measure


def at_epoch(column: str, epoch: int) -> Measure:
    """A history's column at an epoch."""
    return lambda group: group.history(column)[:, epoch]


def within(a: Group, b: Group, words: str, measure: Measure, **options: Any) -> Comparison:
    """Of two groups of one backbone."""
    return Comparison(words + _apart(a, b), unlike(a, b) or paired(a, b, measure), **options)


def between(a: Group, b: Group, words: str, measure: Measure, **options: Any) -> Comparison:
    """Of groups of two backbones."""
    return Comparison(words + _apart(a, b), unlike(a, b) or unpaired(a, b, measure), **options)


def _apart(a: Group, b: Group) -> str:
    return " (not all on one machine)" if len(a.machines | b.machines) > 1 else ""
