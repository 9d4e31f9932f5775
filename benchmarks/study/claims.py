"""The paper's nine claims (section 6) as rules on the study's runs, and what they come to.

Judged is the paper's experiment: its split, 20 epochs, all faces, its networks at their own size, complete
weights, FER2013; runs that predict one class for everything are left out (`results.find`). Other widths
and sizes of a network stand beside it as evidence and decide nothing.

Within a backbone, runs are paired by seed and the interval is Student's, 95 %, of the mean of the paired
differences. Between backbones they are not paired and the interval is Welch's. Two seeds on either side are
the least; with fewer a comparison is open. A comparison says yes or no where its interval leaves the bound
out, and is open where it does not. A claim holds where every comparison that it needs says yes, does not hold
where one says no, and else cannot be tested here.

Whether the paper's random networks were frozen like the pretrained ones is not known, so claims 1-3 are
compared with both readings: `random` (frozen) and `scratch` (nothing frozen). Both have to agree where both
ran; where frozen random weights are degenerate by construction, `scratch` alone decides.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.study.cells import BACKBONES, EPOCHS
from benchmarks.study.results import Group, find

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "cannot be tested here"
CONFIDENCE = 0.95
SAME_ACCURACY = 0.02  # "about the accuracy": within two points
SAME_RATE = 0.002  # "equal rates": within one point of accuracy in five epochs
FAR_FEWER = 0.5  # "far fewer parameters": at most half
PASSED = 0.8
BEST = ("happy", "angry", "fear", "surprise")
WORST = "disgust"

Measure = Callable[[Group], np.ndarray]
# Yes, no, or open; and the numbers in words.
Outcome = tuple[bool | None, str]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a claim comes to.

    Attributes:
      number, claim: the paper's.
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

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], n = {self.n}"


def paired(a: Group, b: Group, measure: Measure) -> Effect | None:
    """a - b over the seeds that both have; None for fewer than two."""
    seeds = sorted(set(a.seeds) & set(b.seeds))
    left, right = measure(a), measure(b)
    return mean_effect([left[a.seeds.index(s)] - right[b.seeds.index(s)] for s in seeds])


def mean_effect(values: Sequence[float] | np.ndarray) -> Effect | None:
    """The mean with Student's interval; None of fewer than two values, or where one is no number."""
    x = np.asarray(values, float)
    if len(x) < 2 or not np.isfinite(x).all():
        return None
    return _effect(x.mean(), x.std(ddof=1) / math.sqrt(len(x)), len(x) - 1, str(len(x)))


def unpaired(a: Group, b: Group, measure: Measure) -> Effect | None:
    """a - b by Welch; None for fewer than two seeds on a side, or where a value is no number."""
    sides = [measure(a), measure(b)]
    if min(map(len, sides)) < 2 or not all(np.isfinite(x).all() for x in sides):
        return None
    parts = [float(x.var(ddof=1)) / len(x) for x in sides]
    total = sum(parts)
    spread = sum(part**2 / (len(x) - 1) for part, x in zip(parts, sides, strict=True))
    n = f"{len(sides[0])} and {len(sides[1])}"
    freedom = total**2 / spread if spread else 1.0
    return _effect(sides[0].mean() - sides[1].mean(), math.sqrt(total), freedom, n)


def _effect(mean: float, error: float, freedom: float, n: str) -> Effect:
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Effect(float(mean), float(mean - half), float(mean + half), n)


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


def judge(groups: Sequence[Group]) -> list[Verdict]:
    """The verdicts on all nine claims."""
    rules = (_beats_random, _converges_faster, _overfits_more, _vggface_best, _vggface_slowest,
             _openface_like_resnet50, _mobilenet_smallest, _openface_fastest, _classes)  # fmt: skip
    return [rule(groups) for rule in rules]


def _above(effect: Effect | None, bound: float = 0.0) -> Outcome:
    """Whether an effect is above the bound."""
    if effect is None:
        return None, "fewer than two seeds on either side"
    return (True if effect.low > bound else False if effect.high < bound else None), str(effect)


def _below(effect: Effect | None, bound: float = 0.0) -> Outcome:
    """Whether an effect is below the bound."""
    above, words = _above(effect, bound)
    return (None if above is None else not above), words


def _all(outcomes: Iterable[bool | None]) -> bool | None:
    """No where one says no, open where one is open, else yes."""
    found = list(outcomes)
    return False if False in found else None if None in found else True


def _verdict(outcomes: Iterable[bool | None]) -> str:
    return {True: HOLDS, False: FAILS, None: UNTESTED}[_all(outcomes)]


def _every_backbone(
    groups: Sequence[Group], test: Callable[[Group, Group], Outcome]
) -> tuple[str, tuple[str, ...]]:
    """Verdict and numbers of a claim about pretrained against random weights in every backbone."""
    outcomes: list[bool | None] = []
    numbers = []
    for backbone in BACKBONES:
        compared = False
        for papers in (True, False):
            for pretrained in find(groups, "pretrained", backbone, papers):
                for init in ("random", "scratch"):
                    for other in find(groups, init, backbone, papers):
                        if other.setting != pretrained.setting:
                            continue
                        outcome, words = test(pretrained, other)
                        beside = "" if papers else " (beside: not the paper's network)"
                        numbers.append(f"{pretrained.setting.words}, against {init}{beside}: {words}")
                        if papers:
                            outcomes.append(outcome)
                            compared = True
        if not compared:
            outcomes.append(None)
            numbers.append(f"{backbone}: {_why_no_pair(groups, backbone)}")
    return _verdict(outcomes), tuple(numbers)


def _why_no_pair(groups: Sequence[Group], backbone: str) -> str:
    reasons = []
    for inits in (("pretrained",), ("random", "scratch")):
        name = " or ".join(inits)
        if any(find(groups, init, backbone) for init in inits):
            continue
        here = [
            g for g in groups if g.setting.backbone == backbone and g.init in inits and g.setting.is_papers
        ]
        if any(g.drawn for g in here):
            reasons.append("the runs are on drawn faces")
        elif any(not g.is_fer2013 for g in here):
            reasons.append("the runs are on data of one's own, not FER2013")
        elif here:
            reasons.append(f"{name} is {'degenerate' if here[0].degenerate else 'only partly pretrained'}")
        else:
            reasons.append(f"no {name} run of the paper's network and data")
    return " and ".join(dict.fromkeys(reasons)) or "no pair of one setting"


def _beats_random(groups: Sequence[Group]) -> Verdict:
    def test(pretrained: Group, other: Group) -> Outcome:
        return _above(paired(pretrained, other, at_epoch("val_accuracy", -1)))

    return Verdict(
        1, "Pretrained beats random for every backbone.",
        "pretrained less random (and less scratch), final validation accuracy: above 0 in every backbone",
        *_every_backbone(groups, test),
    )  # fmt: skip


def _converges_faster(groups: Sequence[Group]) -> Verdict:
    def test(pretrained: Group, other: Group) -> Outcome:
        early, early_words = _above(paired(pretrained, other, rate("train_accuracy", 0, 10)))
        late, late_words = _below(paired(pretrained, other, rate("train_accuracy", 15, 20)), SAME_RATE)
        passed = bool((pretrained.history("train_accuracy")[:, 15] > PASSED).all())
        words = (
            f"epochs 1-10 {early_words}; epochs 16-20 {late_words}; all past {PASSED} by 15: {_yes(passed)}"
        )
        return _all((early, late, passed)), words

    return Verdict(
        2,
        "Pretrained converges faster in epochs 1-10; by 15-20 the rates are equal or the random one is "
        "faster, because the pretrained model has by then passed an accuracy of 0.8.",
        "pretrained less random (and less scratch), MCR of accuracy: above 0 over epochs 1-10, below "
        f"{SAME_RATE} over 16-20, and every pretrained run above {PASSED} on the training set after epoch 15",
        *_every_backbone(groups, test),
    )  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _spans(column: str) -> dict[str, Measure]:
    """A rate to the last epoch from epoch 0 and from epoch 1, by name."""
    name = {"gap": "MOFR", "train_accuracy": "MCR"}[column]
    return {f"{name} from epoch {first}": rate(column, first, EPOCHS) for first in (0, 1)}


def _overfits_more(groups: Sequence[Group]) -> Verdict:
    def test(pretrained: Group, other: Group) -> Outcome:
        found = {name: _above(paired(pretrained, other, measure)) for name, measure in _spans("gap").items()}
        words = "; ".join(f"{name} {words}" for name, (_, words) in found.items())
        return _all(outcome for outcome, _ in found.values()), words

    return Verdict(
        3, "Pretrained overfits more.",
        "pretrained less random (and less scratch), MOFR of accuracy from epoch 0 and from epoch 1: both "
        "above 0",
        *_every_backbone(groups, test),
    )  # fmt: skip


def _leads(
    groups: Sequence[Group],
    backbone: str,
    measures: dict[str, Measure],
    compare: Callable[[Effect | None], Outcome],
    also: Sequence[str] = (),
) -> tuple[str, tuple[str, ...]]:
    """Whether a pretrained backbone stands against each other pretrained one, in every measure.

    Args:
      compare: of the effect, this backbone less the other.
      also: initialisations whose runs, where there are any, are compared too.
    """
    mine = find(groups, "pretrained", backbone)
    outcomes: list[bool | None] = []
    numbers = []
    for other in BACKBONES:
        theirs = find(groups, "pretrained", other) if other != backbone else []
        lacking = [name for name, found in ((backbone, mine), (other, theirs)) if not found]
        if other != backbone and lacking:
            outcomes.append(None)
            numbers.append(
                f"{backbone} against {other}: no complete pretrained run of {' and '.join(lacking)}"
            )
        theirs = [*theirs, *(group for init in also for group in find(groups, init, other))]
        for a in mine:
            for b in theirs:
                for name, measure in measures.items():
                    outcome, words = compare(unpaired(a, b, measure))
                    outcomes.append(outcome)
                    numbers.append(f"{a.words} less {b.words}, {name}: {words}")
    return _verdict(outcomes), tuple(numbers)


def _vggface_best(groups: Sequence[Group]) -> Verdict:
    measures = {
        "validation accuracy after epoch 1": at_epoch("val_accuracy", 1),
        "validation accuracy at the end": at_epoch("val_accuracy", -1),
    }
    return Verdict(
        4, "Pretrained VGG-Face has the best initial and the best final validation accuracy.",
        "pretrained VGG-Face less each other pretrained backbone, and less every random and scratch one that "
        "ran, validation accuracy after epoch 1 and at the end: above 0",
        *_leads(groups, "vggface", measures, _above, also=("random", "scratch")),
    )  # fmt: skip


def _vggface_slowest(groups: Sequence[Group]) -> Verdict:
    return Verdict(
        5, "Pretrained VGG-Face has the lowest convergence rate.",
        "pretrained VGG-Face less each other pretrained backbone, MCR of accuracy from epoch 0 and from "
        "epoch 1: both below 0",
        *_leads(groups, "vggface", _spans("train_accuracy"), _below),
    )  # fmt: skip


def _openface_like_resnet50(groups: Sequence[Group]) -> Verdict:
    claim = (
        "OpenFace reaches about the accuracy of ResNet-50, with far fewer parameters, and fits and predicts "
        "faster."
    )
    rule = (
        f"pretrained OpenFace less ResNet-50, final validation accuracy: within ±{SAME_ACCURACY}; at most "
        "half the parameters; fewer seconds in the epochs and more images/s to predict, on one machine"
    )
    pairs = [
        (a, b) for a in find(groups, "pretrained", "openface") for b in find(groups, "pretrained", "resnet50")
    ]
    if not pairs:
        return Verdict(6, claim, rule, UNTESTED, (_lacking(groups, "openface", "resnet50"),))
    (a, b) = pairs[0]
    accuracy = unpaired(a, b, at_epoch("val_accuracy", -1))
    low, words = _above(accuracy, -SAME_ACCURACY)
    high, _ = _below(accuracy, SAME_ACCURACY)
    smaller = _parameters(a) <= FAR_FEWER * _parameters(b)
    numbers = [f"accuracy: {words}", f"parameters {_parameters(a):,} against {_parameters(b):,}"]
    outcomes = [low, high, smaller]
    if {str(run["device"]) for run in a.runs} == {str(run["device"]) for run in b.runs}:
        for name, sign in (("fit_seconds", -1), ("predict_images_per_s", 1)):
            ours, theirs = a.values(name).mean(), b.values(name).mean()
            outcomes.append(bool(sign * (ours - theirs) > 0))
            numbers.append(f"{name.replace('_', ' ')}: {ours:.1f} against {theirs:.1f}")
    else:
        outcomes.append(None)
        numbers.append("seconds and images/s: measured on different machines")
    return Verdict(6, claim, rule, _verdict(outcomes), tuple(numbers))


def _parameters(group: Group) -> int:
    return int(group.runs[0]["model"]["backbone_parameters"])


def _lacking(groups: Sequence[Group], *backbones: str) -> str:
    names = [name for name in backbones if not find(groups, "pretrained", name)]
    return f"no complete pretrained run of {' and '.join(names)}"


def _mobilenet_smallest(groups: Sequence[Group]) -> Verdict:
    claim = "MobileNet has the fewest parameters and scores below OpenFace."
    rule = (
        "pretrained MobileNet less OpenFace, final validation accuracy: below 0; of the backbones that ran "
        "none has fewer parameters"
    )
    pairs = [
        (a, b)
        for a in find(groups, "pretrained", "mobilenet")
        for b in find(groups, "pretrained", "openface")
    ]
    if not pairs:
        return Verdict(7, claim, rule, UNTESTED, (_lacking(groups, "mobilenet", "openface"),))
    mobilenet, openface = pairs[0]
    outcome, words = _below(unpaired(mobilenet, openface, at_epoch("val_accuracy", -1)))
    sizes = {g.setting.backbone: _parameters(g) for g in groups if g.setting.is_papers}
    fewest = sizes["mobilenet"] == min(sizes.values())
    told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    return Verdict(7, claim, rule, _verdict((outcome, fewest)), (f"accuracy: {words}", f"parameters: {told}"))


def _openface_fastest(groups: Sequence[Group]) -> Verdict:
    return Verdict(
        8, "OpenFace has the highest convergence rate and the highest overfitting rate.",
        "pretrained OpenFace less each other pretrained backbone, MCR and MOFR of accuracy from epoch 0 and "
        "from epoch 1: all above 0",
        *_leads(groups, "openface", _spans("train_accuracy") | _spans("gap"), _above),
    )  # fmt: skip


def _classes(groups: Sequence[Group]) -> Verdict:
    outcomes: list[bool | None] = []
    numbers = []
    for papers in (True, False):
        for backbone in BACKBONES:
            for group in find(groups, "pretrained", backbone, papers):
                outcome, words = _order_of_classes(group)
                beside = "" if papers else " (beside: not the paper's network)"
                numbers.append(f"{group.setting.words}{beside}: {words}")
                if papers:
                    outcomes.append(outcome)
    return Verdict(
        9, "Happiness, anger, fear and surprise are recognised best, disgust worst.",
        "recall on test in every pretrained group: the lowest of happy, angry, fear and surprise less the "
        "highest of the other classes, and the lowest of the others less disgust: both above 0",
        _verdict(outcomes or [None]), tuple(numbers) or ("no complete pretrained run",),
    )  # fmt: skip


def _order_of_classes(group: Group) -> Outcome:
    names = group.runs[0]["test"]["class_names"]
    recall = {name: group.values("test", "per_class", name, "recall") for name in names}
    rest = [name for name in names if name not in BEST]
    best = np.min([recall[name] for name in BEST], axis=0) - np.max([recall[name] for name in rest], axis=0)
    others = [recall[name] for name in names if name != WORST]
    worst = np.min(others, axis=0) - recall[WORST]
    first, first_words = _above(mean_effect(best))
    second, second_words = _above(mean_effect(worst))
    order = sorted(names, key=lambda name: -recall[name].mean())
    told = ", ".join(f"{name} {recall[name].mean():.3f}" for name in order)
    words = f"{told}; four best less the rest {first_words}; others less disgust {second_words}"
    return _all((first, second)), words
