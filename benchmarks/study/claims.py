"""The paper's nine claims (section 6) as rules on the study's runs, and what they come to.

Judged is the paper's experiment: its split, 20 epochs, all faces, its networks at their own size, complete
weights, FER2013; runs that predict one class for everything are left out (`results.find`). Other widths
and sizes of a network stand beside it as evidence and decide nothing.

Within a backbone, runs are paired by seed and the interval is Student's of the mean of the paired
differences. Between backbones they are not paired and the interval is Welch's. Two seeds on either side, on
the same faces and split, are the least; else a comparison is open. Runs on several machines, or with several
ways to multiply float32, are compared, and it is said: what that alone changes is not told apart.

A claim is a list of comparisons, all of which it needs. One says yes where its 95 % interval lies on the
claim's side of the bound. One says no where an interval lies on the other side that is wider, by Bonferroni's
correction for all of the claim's comparisons: each is a chance to refute it. A claim holds where every
comparison says yes, does not hold where one says no, and else cannot be tested here. Intervals cover what
changes with the seed; the split and its faces are the same in all runs.

Whether the paper's random networks were frozen like the pretrained ones is not known, so claims 1-3 are
compared with both readings: `random` (frozen) and `scratch` (nothing frozen). Both have to agree where both
ran with two seeds or more; one that ran once stands beside, and decides nothing where the other can be
compared. Where frozen random weights are degenerate by construction, `scratch` alone decides.

Claims 5-9 are read as being of pretrained backbones, the paper's subject, and "rates" in claims 3, 5 and 8 as
those of accuracy; the report has the rates of loss, and the other initialisations, in tables 2-5.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.study.cells import BACKBONES, EPOCHS
from benchmarks.study.comparisons import (
    Comparison,
    Effect,
    Measure,
    at_epoch,
    between,
    mean_effect,
    rate,
    unlike,
    within,
)
from benchmarks.study.results import Group, find

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "cannot be tested here"
INCONCLUSIVE = f"{UNTESTED}: inconclusive"  # everything was compared, and no interval refutes it
SAME_ACCURACY = 0.02  # "about the accuracy": within two points
SAME_RATE = 0.002  # "equal rates": within one point of accuracy in five epochs
FAR_FEWER = 0.5  # "far fewer parameters": at most half
PASSED = 0.8
BEST = ("happy", "angry", "fear", "surprise")
WORST = "disgust"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a claim comes to.

    Attributes:
      number, claim: the paper's.
      rule: how it was tested.
      verdict: `HOLDS`, `FAILS`, `UNTESTED` or `INCONCLUSIVE`.
      numbers: effect, interval and n of every comparison, or why there is none; a line each.
    """

    number: int
    claim: str
    rule: str
    verdict: str
    numbers: tuple[str, ...]


def judge(groups: Sequence[Group]) -> list[Verdict]:
    """The verdicts on all nine claims."""
    rules = (_beats_random, _converges_faster, _overfits_more, _vggface_best, _vggface_slowest,
             _openface_like_resnet50, _mobilenet_smallest, _openface_fastest, _classes)  # fmt: skip
    return [rule(groups) for rule in rules]


def _verdict(comparisons: Sequence[Comparison]) -> str:
    # What is told of the pretrained runs alone stands in each of their pairs, and counts once.
    needed = list(dict.fromkeys(comparisons))
    family = sum(isinstance(comparison.found, Effect) for comparison in needed)
    outcomes = [comparison.says(family) for comparison in needed]
    if False in outcomes:
        return FAILS
    if None not in outcomes:
        return HOLDS
    return UNTESTED if any(isinstance(comparison.found, str) for comparison in needed) else INCONCLUSIVE


def _words(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, comparisons)))  # what several pairs need is told once


def _every_backbone(
    groups: Sequence[Group], test: Callable[[Group, Group], list[Comparison]]
) -> tuple[str, tuple[str, ...]]:
    """Verdict and numbers of a claim about pretrained against random weights in every backbone."""
    needed: list[Comparison] = []
    numbers = []
    for backbone in BACKBONES:
        pairs = {papers: _pairs(groups, backbone, papers) for papers in (True, False)}
        judged = _repeated(pairs[True])
        for papers, found in pairs.items():
            for pair in found:
                pretrained, other = pair
                comparisons = test(pretrained, other)
                beside = "" if papers else " (beside: not the paper's network)"
                beside = " (beside: one seed)" if papers and pair not in judged else beside
                told = "; ".join(_words(comparisons))
                numbers.append(f"{pretrained.setting.words}, against {other.init}{beside}: {told}")
                needed += comparisons if pair in judged else []
        if not judged:
            needed.append(Comparison(backbone, _why_no_pair(groups, backbone)))
            numbers.append(str(needed[-1]))
    return _verdict(needed), tuple(numbers)


def _pairs(groups: Sequence[Group], backbone: str, papers: bool) -> list[tuple[Group, Group]]:
    """The pretrained groups with the random and scratch ones of the same setting."""
    return [
        (pretrained, other)
        for pretrained in find(groups, "pretrained", backbone, papers)
        for init in ("random", "scratch")
        for other in find(groups, init, backbone, papers)
        if other.setting == pretrained.setting
    ]


def _repeated(pairs: list[tuple[Group, Group]]) -> list[tuple[Group, Group]]:
    """Those whose second group has two seeds or more, or all where none has."""
    return [pair for pair in pairs if len(pair[1].runs) > 1] or pairs


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
    def test(pretrained: Group, other: Group) -> list[Comparison]:
        return [within(pretrained, other, "final accuracy", at_epoch("val_accuracy", -1))]

    return Verdict(
        1, "Pretrained beats random for every backbone.",
        "pretrained less random (and less scratch), final validation accuracy: above 0 in every backbone",
        *_every_backbone(groups, test),
    )  # fmt: skip


def _converges_faster(groups: Sequence[Group]) -> Verdict:
    def test(pretrained: Group, other: Group) -> list[Comparison]:
        early = [
            within(pretrained, other, f"MCR from epoch {first} to 10", rate("train_accuracy", first, 10))
            for first in (0, 1)
        ]
        late = rate("train_accuracy", 15, 20)
        reached = mean_effect(at_epoch("train_accuracy", 15)(pretrained))
        return [
            *early,
            within(pretrained, other, "from 15 to 20", late, bound=SAME_RATE, below=True),
            Comparison("pretrained accuracy after epoch 15", reached, bound=PASSED),
        ]

    return Verdict(
        2,
        "Pretrained converges faster in epochs 1-10; by 15-20 the rates are equal or the random one is "
        "faster, because the pretrained model has by then passed an accuracy of 0.8.",
        "pretrained less random (and less scratch), MCR of accuracy: above 0 from epoch 0 and from epoch 1 "
        f"to 10, below {SAME_RATE} from 15 to 20, and pretrained above {PASSED} on the training set after "
        "epoch 15",
        *_every_backbone(groups, test),
    )  # fmt: skip


def _spans(column: str) -> dict[str, Measure]:
    """A rate to the last epoch from epoch 0 and from epoch 1, by name."""
    name = {"gap": "MOFR", "train_accuracy": "MCR"}[column]
    return {f"{name} from epoch {first}": rate(column, first, EPOCHS) for first in (0, 1)}


def _overfits_more(groups: Sequence[Group]) -> Verdict:
    def test(pretrained: Group, other: Group) -> list[Comparison]:
        return [within(pretrained, other, name, measure) for name, measure in _spans("gap").items()]

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
    below: bool = False,
    also: Sequence[str] = (),
) -> tuple[str, tuple[str, ...]]:
    """Whether a pretrained backbone is above, or below, each other pretrained one, in every measure.

    Args:
      also: initialisations whose runs, where there are two or more, are compared too.
    """
    mine = find(groups, "pretrained", backbone)
    needed: list[Comparison] = []
    for other in BACKBONES:
        theirs = find(groups, "pretrained", other) if other != backbone else []
        if other != backbone and not (mine and theirs):
            needed.append(Comparison(f"{backbone} against {other}", _lacking(groups, backbone, other)))
        more = ([g for g in find(groups, init, other) if len(g.runs) > 1] for init in also)
        compare = within if other == backbone else between
        needed += [
            compare(a, b, f"{a.words} less {b.words}, {name}", measure, below=below)
            for side in (theirs, *more)
            for a, b in _comparable(mine, side)
            for name, measure in measures.items()
        ]
    return _verdict(needed), _words(needed)


def _vggface_best(groups: Sequence[Group]) -> Verdict:
    measures = {
        "validation accuracy after epoch 1": at_epoch("val_accuracy", 1),
        "validation accuracy at the end": at_epoch("val_accuracy", -1),
    }
    return Verdict(
        4, "Pretrained VGG-Face has the best initial and the best final validation accuracy.",
        "pretrained VGG-Face less each other pretrained backbone, and less every random and scratch one of "
        "two seeds or more, its own too, validation accuracy after epoch 1 and at the end: above 0",
        *_leads(groups, "vggface", measures, also=("random", "scratch")),
    )  # fmt: skip


def _vggface_slowest(groups: Sequence[Group]) -> Verdict:
    return Verdict(
        5, "Pretrained VGG-Face has the lowest convergence rate.",
        "pretrained VGG-Face less each other pretrained backbone, MCR of accuracy from epoch 0 and from "
        "epoch 1: both below 0",
        *_leads(groups, "vggface", _spans("train_accuracy"), below=True),
    )  # fmt: skip


def _openface_like_resnet50(groups: Sequence[Group]) -> Verdict:
    claim = (
        "OpenFace reaches about the accuracy of ResNet-50, with far fewer parameters, and fits and predicts "
        "faster."
    )
    rule = (
        f"pretrained OpenFace less ResNet-50, final validation accuracy: within ±{SAME_ACCURACY}; at most "
        f"{FAR_FEWER:g} of the parameters; on one machine, logarithm of the seconds in the epochs below 0 "
        "(without the frozen part's features, computed before), of images/s to predict above 0"
    )
    pairs = _comparable(*(find(groups, "pretrained", name) for name in ("openface", "resnet50")))
    if not pairs:
        return Verdict(6, claim, rule, UNTESTED, (_lacking(groups, "openface", "resnet50"),))
    final = at_epoch("val_accuracy", -1)
    needed: list[Comparison] = []
    for a, b in pairs:
        words = f"{a.words} less {b.words}, accuracy"
        needed += [
            between(a, b, f"{words} above {-SAME_ACCURACY}", final, bound=-SAME_ACCURACY),
            between(a, b, f"{words} below {SAME_ACCURACY}", final, bound=SAME_ACCURACY, below=True),
            Comparison(
                f"parameters {a.parameters:,} at most {FAR_FEWER:g} of {b.parameters:,}",
                a.parameters <= FAR_FEWER * b.parameters,
            ),
            *_speeds(a, b),
        ]
    return Verdict(6, claim, rule, _verdict(needed), _words(needed))


def _speeds(a: Group, b: Group) -> list[Comparison]:
    """That `a` fits in fewer seconds and predicts more images/s, by logarithms: noise is of the ratio."""

    def speed(group: Group) -> np.ndarray:
        return group.values("predict_images_per_s")

    if len(a.machines | b.machines) > 1:
        return [Comparison("seconds and images/s", "measured on different machines")]
    sides = [[f"{of(group).mean():.1f}" for group in (a, b)] for of in (lambda g: g.fit_seconds, speed)]
    fit, predict = (" against ".join(side) for side in sides)
    return [
        between(a, b, f"fit seconds {fit}", lambda g: np.log(g.fit_seconds), below=True),
        between(a, b, f"images/s {predict}", lambda g: np.log(speed(g))),
    ]


def _comparable(ones: Sequence[Group], others: Sequence[Group]) -> list[tuple[Group, Group]]:
    """The pairs on the same faces and split; where there is none, any of the rest, which says why."""
    pairs = list(itertools.product(ones, others))
    return [pair for pair in pairs if not unlike(*pair)] or pairs[:1]


def _lacking(groups: Sequence[Group], *backbones: str) -> str:
    names = [name for name in backbones if not find(groups, "pretrained", name)]
    return f"no complete pretrained run of {' and '.join(names)}"


def _mobilenet_smallest(groups: Sequence[Group]) -> Verdict:
    claim = "MobileNet has the fewest parameters and scores below OpenFace."
    rule = (
        "pretrained MobileNet less OpenFace, final validation accuracy: below 0; of the backbones that ran "
        "none has fewer parameters"
    )
    pairs = _comparable(*(find(groups, "pretrained", name) for name in ("mobilenet", "openface")))
    if not pairs:
        return Verdict(7, claim, rule, UNTESTED, (_lacking(groups, "mobilenet", "openface"),))
    sizes = {g.setting.backbone: g.parameters for g in groups if g.setting.is_papers}
    fewest = sizes["mobilenet"] == min(sizes.values())
    told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    final = at_epoch("val_accuracy", -1)
    needed = [between(a, b, f"{a.words} less {b.words}, accuracy", final, below=True) for a, b in pairs]
    needed.append(Comparison(f"parameters {told}: MobileNet the fewest", fewest))
    return Verdict(7, claim, rule, _verdict(needed), _words(needed))


def _openface_fastest(groups: Sequence[Group]) -> Verdict:
    return Verdict(
        8, "OpenFace has the highest convergence rate and the highest overfitting rate.",
        "pretrained OpenFace less each other pretrained backbone, MCR and MOFR of accuracy from epoch 0 and "
        "from epoch 1: all above 0",
        *_leads(groups, "openface", _spans("train_accuracy") | _spans("gap")),
    )  # fmt: skip


def _classes(groups: Sequence[Group]) -> Verdict:
    needed: list[Comparison] = []
    numbers = []
    for backbone in BACKBONES:
        for papers in (True, False):
            for group in find(groups, "pretrained", backbone, papers):
                best, worst = _order_of_classes(group)
                beside = "" if papers else " (beside: not the paper's network)"
                told = "; ".join(
                    [_recalls(group), "smallest of either: " + _smallest(best), _smallest(worst)]
                )
                numbers.append(f"{group.setting.words}{beside}: {told}")
                needed += [*best, *worst] if papers else []
        if not find(groups, "pretrained", backbone):
            needed.append(Comparison(backbone, "no complete pretrained run"))
            numbers.append(str(needed[-1]))
    return Verdict(
        9, "Happiness, anger, fear and surprise are recognised best, disgust worst.",
        "recall on test in every backbone, pretrained: each of happy, angry, fear and surprise less each of "
        "the other classes, and each other class less disgust: all above 0",
        _verdict(needed), tuple(numbers),
    )  # fmt: skip


def _order_of_classes(group: Group) -> tuple[list[Comparison], list[Comparison]]:
    """Each of the best classes with each of the rest, and the rest with the worst, run by run."""
    names = group.runs[0]["test"]["class_names"]
    recall = {name: group.values("test", "per_class", name, "recall") for name in names}
    rest = [name for name in names if name not in BEST]

    def less(one: str, other: str) -> Comparison:
        return Comparison(f"{one} less {other}", mean_effect(recall[one] - recall[other]))

    best = [less(one, other) for one in BEST for other in rest]
    return best, [less(name, WORST) for name in rest if name != WORST]


def _recalls(group: Group) -> str:
    means = {
        name: group.values("test", "per_class", name, "recall").mean()
        for name in group.runs[0]["test"]["class_names"]
    }
    return ", ".join(f"{name} {means[name]:.3f}" for name in sorted(means, key=lambda name: -means[name]))


def _smallest(comparisons: Sequence[Comparison]) -> str:
    return str(min(comparisons, key=lambda c: c.found.mean if isinstance(c.found, Effect) else -math.inf))
