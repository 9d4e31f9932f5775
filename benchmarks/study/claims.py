"""The paper's nine claims (section 6) as rules on the study's runs, and what they come to.

Judged are groups of cells with the paper's split, 20 epochs and all faces, complete weights, and not
degenerate (`results.find`). Within a backbone pretrained and random runs are paired by seed, and the interval
is Student's, 95 %, of the mean of the paired differences. Between backbones runs are not paired; the interval
is Welch's. An interval needs two seeds on either side: without it a claim cannot be tested. A claim of every
backbone holds where it holds in each of the four, does not hold where one contradicts it, and else cannot be
tested here.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.study.cells import BACKBONES
from benchmarks.study.results import Group, find

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "cannot be tested here"
CONFIDENCE = 0.95
SAME_ACCURACY = 0.02  # "about the accuracy": within two points
BEST = frozenset({"happy", "angry", "fear", "surprise"})
WORST = "disgust"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a claim comes to.

    Attributes:
      number, claim: the paper's, by the list in the study's method.
      rule: how it was tested.
      verdict: `HOLDS`, `FAILS` or `UNTESTED`.
      numbers: effect, interval and n of every comparison, or why there is none; a line each.
    """

    number: int
    claim: str
    rule: str
    verdict: str
    numbers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Effect:
    """A mean difference with its interval, and how many seeds it rests on."""

    mean: float
    low: float
    high: float
    n: str

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves 0 out, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], n = {self.n}"


def paired(a: Group, b: Group, measure: Callable[[Group], np.ndarray]) -> Effect | None:
    """a - b over the seeds that both have; None for fewer than two."""
    seeds = sorted(set(a.seeds) & set(b.seeds))
    if len(seeds) < 2:
        return None
    left, right = measure(a), measure(b)
    differences = np.array([left[a.seeds.index(s)] - right[b.seeds.index(s)] for s in seeds])
    return _effect(
        differences.mean(), differences.std(ddof=1) / math.sqrt(len(seeds)), len(seeds) - 1, str(len(seeds))
    )


def unpaired(a: Group, b: Group, measure: Callable[[Group], np.ndarray]) -> Effect | None:
    """a - b by Welch; None for fewer than two seeds on a side."""
    left, right = measure(a), measure(b)
    if min(len(left), len(right)) < 2:
        return None
    parts = [x.var(ddof=1) / len(x) for x in (left, right)]
    total = sum(parts)
    freedom = (
        total**2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (left, right), strict=True))
        if total
        else 1.0
    )
    return _effect(left.mean() - right.mean(), math.sqrt(total), freedom, f"{len(left)} and {len(right)}")


def _effect(mean: float, error: float, freedom: float, n: str) -> Effect:
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Effect(float(mean), float(mean - half), float(mean + half), n)


def rate(column: str, first: int, last: int) -> Callable[[Group], np.ndarray]:
    """The mean change an epoch of a history's column, or of train less validation for "gap"."""

    def measure(group: Group) -> np.ndarray:
        if column == "gap":
            values = group.history("train_accuracy") - group.history("val_accuracy")
        else:
            values = group.history(column)
        return (values[:, last] - values[:, first]) / (last - first)

    return measure


def at_epoch(column: str, epoch: int) -> Callable[[Group], np.ndarray]:
    """A history's column at an epoch."""
    return lambda group: group.history(column)[:, epoch]


def judge(groups: Sequence[Group]) -> list[Verdict]:
    """The verdicts on all nine claims."""
    rules = (_beats_random, _converges_faster, _overfits_more, _vggface_best, _vggface_slowest,
             _openface_like_resnet50, _mobilenet_smallest, _openface_fastest, _classes)  # fmt: skip
    return [rule(groups) for rule in rules]


def _pairs(groups: Sequence[Group]) -> dict[str, list[tuple[Group, Group]]]:
    """By backbone: pretrained and random groups of one setting."""
    result: dict[str, list[tuple[Group, Group]]] = {}
    for backbone in BACKBONES:
        random = {group.setting: group for group in find(groups, "random", backbone)}
        pretrained = find(groups, "pretrained", backbone)
        result[backbone] = [(g, random[g.setting]) for g in pretrained if g.setting in random]
    return result


def _every_backbone(
    groups: Sequence[Group], test: Callable[[Group, Group], tuple[bool | None, str]]
) -> tuple[str, tuple[str, ...]]:
    """Verdict and numbers of a claim about pretrained against random in every backbone."""
    outcomes: list[bool | None] = []
    numbers = []
    for backbone, pairs in _pairs(groups).items():
        if not pairs:
            outcomes.append(None)
            numbers.append(f"{backbone}: {_why_no_pair(groups, backbone)}")
        for pretrained, random in pairs:
            outcome, words = test(pretrained, random)
            outcomes.append(outcome)
            numbers.append(f"{pretrained.setting.words}: {words}")
    verdict = FAILS if False in outcomes else UNTESTED if None in outcomes else HOLDS
    return verdict, tuple(numbers)


def _why_no_pair(groups: Sequence[Group], backbone: str) -> str:
    reasons = []
    for init in ("pretrained", "random"):
        here = [
            g for g in groups if g.setting.backbone == backbone and g.init == init and g.setting.is_papers
        ]
        if not here:
            reasons.append(f"no {init} run")
        elif not find(groups, init, backbone):
            reasons.append(
                f"{init} runs are {'degenerate' if here[0].degenerate else 'only partly pretrained'}"
            )
    return " and ".join(reasons) or "no pair of one setting"


def _told(effect: Effect | None, wanted: int = 1) -> tuple[bool | None, str]:
    """Whether an effect has the sign wanted: yes, no (the other sign), or None; with its words."""
    if effect is None:
        return None, "fewer than two seeds on either side"
    return (None if effect.sign == 0 else effect.sign == wanted), str(effect)


def _beats_random(groups: Sequence[Group]) -> Verdict:
    def test(pretrained: Group, random: Group) -> tuple[bool | None, str]:
        return _told(paired(pretrained, random, at_epoch("val_accuracy", -1)))

    return Verdict(
        1, "Pretrained beats random for every backbone.",
        "pretrained less random, final validation accuracy: above 0",
        *_every_backbone(groups, test),
    )  # fmt: skip


def _converges_faster(groups: Sequence[Group]) -> Verdict:
    def test(pretrained: Group, random: Group) -> tuple[bool | None, str]:
        early, early_words = _told(paired(pretrained, random, rate("train_accuracy", 0, 10)))
        late = paired(pretrained, random, rate("train_accuracy", 15, 20))
        passed = bool((pretrained.history("train_accuracy")[:, 15] > 0.8).all())
        words = (
            f"epochs 1-10 {early_words}; epochs 16-20 {_told(late)[1]}; all past 0.8 at epoch 15: {passed}"
        )
        if late is None or early is None:
            return None, words
        return early and late.sign <= 0 and passed, words

    return Verdict(
        2,
        "Pretrained converges faster in epochs 1-10; by 15-20 the rates are equal or the random one is "
        "faster, because the pretrained model has by then passed an accuracy of 0.8.",
        "pretrained less random, MCR of accuracy: above 0 over epochs 1-10, not above 0 over 16-20, and "
        "every pretrained run above 0.8 on the training set after epoch 15",
        *_every_backbone(groups, test),
    )  # fmt: skip


def _overfits_more(groups: Sequence[Group]) -> Verdict:
    def test(pretrained: Group, random: Group) -> tuple[bool | None, str]:
        return _told(paired(pretrained, random, rate("gap", 0, 20)))

    return Verdict(
        3, "Pretrained overfits more.", "pretrained less random, MOFR of accuracy from epoch 0: above 0",
        *_every_backbone(groups, test),
    )  # fmt: skip


def _one_against_others(
    groups: Sequence[Group], backbone: str, measures: dict[str, Callable[[Group], np.ndarray]], wanted: int
) -> tuple[str, tuple[str, ...]]:
    """Whether one pretrained backbone is above (1) or below (-1) each other one in every measure."""
    outcomes: list[bool | None] = []
    numbers = []
    mine = find(groups, "pretrained", backbone)
    for other in BACKBONES:
        if other == backbone:
            continue
        theirs = find(groups, "pretrained", other)
        if not mine or not theirs:
            lacking = [name for name, found in ((backbone, mine), (other, theirs)) if not found]
            outcomes.append(None)
            numbers.append(
                f"{backbone} against {other}: no complete pretrained run of {' and '.join(lacking)}"
            )
        for a in mine:
            for b in theirs:
                for name, measure in measures.items():
                    outcome, words = _told(unpaired(a, b, measure), wanted)
                    outcomes.append(outcome)
                    numbers.append(f"{a.setting.words} less {b.setting.words}, {name}: {words}")
    return FAILS if False in outcomes else UNTESTED if None in outcomes else HOLDS, tuple(numbers)


def _vggface_best(groups: Sequence[Group]) -> Verdict:
    measures = {
        "validation accuracy after epoch 1": at_epoch("val_accuracy", 1),
        "after the last": at_epoch("val_accuracy", -1),
    }
    return Verdict(
        4, "Pretrained VGG-Face has the best initial and the best final validation accuracy.",
        "VGG-Face less each other pretrained backbone, validation accuracy after epoch 1 and at the end: "
        "above 0",
        *_one_against_others(groups, "vggface", measures, 1),
    )  # fmt: skip


def _vggface_slowest(groups: Sequence[Group]) -> Verdict:
    return Verdict(
        5, "Pretrained VGG-Face has the lowest convergence rate.",
        "VGG-Face less each other pretrained backbone, MCR of accuracy from epoch 0: below 0",
        *_one_against_others(groups, "vggface", {"MCR": rate("train_accuracy", 0, 20)}, -1),
    )  # fmt: skip


def _openface_like_resnet50(groups: Sequence[Group]) -> Verdict:
    claim = (
        "OpenFace reaches about the accuracy of ResNet-50, with far fewer parameters, and fits and predicts "
        "faster."
    )
    rule = (
        f"pretrained OpenFace less ResNet-50, final validation accuracy: interval within ±{SAME_ACCURACY}; "
        "fewer parameters; fewer seconds to fit and more images/s to predict in the same study"
    )
    openface, resnet50 = (find(groups, "pretrained", name) for name in ("openface", "resnet50"))
    if not openface or not resnet50:
        return Verdict(6, claim, rule, UNTESTED, (_lacking(groups, "openface", "resnet50"),))
    a, b = openface[0], resnet50[0]
    effect = unpaired(a, b, at_epoch("val_accuracy", -1))
    smaller = a.values("model", "backbone_parameters")[0] < b.values("model", "backbone_parameters")[0]
    fits = a.values("fit_seconds").mean() < b.values("fit_seconds").mean()
    predicts = a.values("predict_images_per_s").mean() > b.values("predict_images_per_s").mean()
    words = (
        f"accuracy {_told(effect)[1]}",
        f"fewer parameters: {smaller}",
        f"fits faster: {fits}",
        f"predicts faster: {predicts}",
    )
    if effect is None:
        return Verdict(6, claim, rule, UNTESTED, words)
    same = effect.low > -SAME_ACCURACY and effect.high < SAME_ACCURACY
    apart = effect.low > SAME_ACCURACY or effect.high < -SAME_ACCURACY
    fine = smaller and fits and predicts
    verdict = HOLDS if same and fine else FAILS if apart or not fine else UNTESTED
    return Verdict(6, claim, rule, verdict, words)


def _lacking(groups: Sequence[Group], *backbones: str) -> str:
    names = [name for name in backbones if not find(groups, "pretrained", name)]
    return f"no complete pretrained run of {' and '.join(names)}"


def _mobilenet_smallest(groups: Sequence[Group]) -> Verdict:
    claim = "MobileNet has the fewest parameters and scores below OpenFace."
    rule = "pretrained MobileNet alpha 1 less OpenFace, final validation accuracy: below 0; fewer parameters"
    full = [g for g in find(groups, "pretrained", "mobilenet") if g.setting.alpha == 1]
    openface = find(groups, "pretrained", "openface")
    if not full or not openface:
        names = [n for n, found in (("mobilenet alpha 1", full), ("openface", openface)) if not found]
        return Verdict(7, claim, rule, UNTESTED, (f"no complete pretrained run of {' and '.join(names)}",))
    smaller = (
        full[0].values("model", "backbone_parameters")[0]
        < openface[0].values("model", "backbone_parameters")[0]
    )
    outcome, words = _told(unpaired(full[0], openface[0], at_epoch("val_accuracy", -1)), -1)
    verdict = FAILS if not smaller or outcome is False else UNTESTED if outcome is None else HOLDS
    return Verdict(7, claim, rule, verdict, (words, f"fewer parameters: {smaller}"))


def _openface_fastest(groups: Sequence[Group]) -> Verdict:
    measures = {"MCR": rate("train_accuracy", 0, 20), "MOFR": rate("gap", 0, 20)}
    return Verdict(
        8, "OpenFace has the highest convergence rate and the highest overfitting rate.",
        "OpenFace less each other pretrained backbone, MCR and MOFR of accuracy from epoch 0: above 0",
        *_one_against_others(groups, "openface", measures, 1),
    )  # fmt: skip


def _classes(groups: Sequence[Group]) -> Verdict:
    claim = "Happiness, anger, fear and surprise are recognised best, disgust worst."
    rule = (
        "recall on test, mean over the seeds of a pretrained group: the four highest are happy, angry, fear "
        "and surprise, the lowest is disgust; holds where it does in every group, does not where it fails in "
        "one"
    )
    outcomes, numbers = [], []
    for group in find(groups, "pretrained"):
        recall = {
            name: float(group.values("test", "per_class", name, "recall").mean())
            for name in group.runs[0]["test"]["class_names"]
        }
        order = sorted(recall, key=lambda name: -recall[name])
        outcomes.append(set(order[:4]) == BEST and order[-1] == WORST)
        told = ", ".join(f"{name} {recall[name]:.3f}" for name in order)
        numbers.append(f"{group.setting.words}, n = {len(group.runs)}: {told}")
    if not outcomes:
        return Verdict(9, claim, rule, UNTESTED, ("no complete pretrained run",))
    return Verdict(9, claim, rule, HOLDS if all(outcomes) else FAILS, tuple(numbers))
