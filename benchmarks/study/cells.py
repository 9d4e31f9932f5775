"""A cell of the study: one training, what it is called, the configuration it stands for."""

import dataclasses
import re
from typing import Any

import weights_conversion
from benchmarks.study import shape
from configs import default
from fer_jax.data import splits
from fer_jax.errors import InputError

BACKBONES = ("openface", "vggface", "resnet50", "mobilenet")
INITS = ("pretrained", "random", "scratch")
EPOCHS, LEARNING_RATE = 20, 1e-4  # the paper's
# What differs from the paper's experiment, by name; `ferplus` needs the path of FER+'s file.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deduplicated": {"data.deduplicate": True},
    "ferplus": {},
    "flipped": {"augment.flip": True},
    "balanced": {"class_weight": "balanced"},
    "procedure": {"augment.flip": True, "augment.rotation": 0.1, "class_weight": "balanced"},
}
VARIANT_WORDS = {
    "plain": "",
    "deduplicated": "duplicates and leaks dropped",
    "ferplus": "FER+ majority labels",
    "flipped": "mirrored at random",
    "balanced": "balanced class weights",
    "procedure": "mirrored and turned at random, balanced class weights",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """All of a cell but initialisation and seed; within one, cells are paired over seeds.

    Attributes:
      image_size: pixels, resolved.
      limit: faces used; 0 for all.
      data: name of the class folders, or their archive; empty for a csv of FER2013 and what is found.
    """

    backbone: str
    alpha: float = 1.0
    image_size: int = 224
    split: str = "paper"
    variant: str = "plain"
    epochs: int = EPOCHS
    limit: int = 0
    data: str = ""
    learning_rate: float = LEARNING_RATE

    @property
    def words(self) -> str:
        """What people call it."""
        network = weights_conversion.title(self.backbone, self.alpha)
        parts = [f"{network} at {self.image_size}{f' on {self.data}' if self.data else ''}"]
        parts += [f"split {self.split}"] if self.split != "paper" else []
        parts += [VARIANT_WORDS[self.variant]] if self.variant != "plain" else []
        parts += [f"{self.epochs} epochs"] if self.epochs != EPOCHS else []
        parts += [f"limited to {self.limit:,} faces"] if self.limit else []
        parts += [f"learning rate {self.learning_rate:g}"] if self.learning_rate != LEARNING_RATE else []
        return ", ".join(parts)

    @property
    def has_papers_data(self) -> bool:
        """Whether it has the paper's split, epochs, learning rate and faces, and nothing added."""
        papers = ("paper", "plain", EPOCHS, 0, LEARNING_RATE)
        return (self.split, self.variant, self.epochs, self.limit, self.learning_rate) == papers

    @property
    def is_papers(self) -> bool:
        """Whether it is the paper's experiment: its network too, at the backbone's own size."""
        own = papers(self.backbone)
        return self.has_papers_data and (self.alpha, self.image_size) == (own.alpha, own.image_size)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: `seed` is both the configuration's `seed` and its `init_seed`."""

    setting: Setting
    init: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        s = self.setting
        alpha = f"_{s.alpha:g}" if s.backbone == "mobilenet" else ""
        parts = [f"{s.backbone}{alpha}", str(s.image_size), self.init, s.split, s.variant]
        parts += [f"e{s.epochs}"] if s.epochs != EPOCHS else []
        parts += [f"limit{s.limit}"] if s.limit else []
        parts += [f"lr{s.learning_rate:g}"] if s.learning_rate != LEARNING_RATE else []
        parts += [re.sub(r"[^\w.-]+", "-", s.data)] if s.data else []
        return "_".join([*parts, f"seed{self.seed}"])

    def spec(self) -> dict[str, Any]:
        """As plain types; `from_spec` undoes it."""
        return {**dataclasses.asdict(self.setting), "init": self.init, "seed": self.seed}


_SPEC = {
    "backbone": shape.one_of(BACKBONES), "alpha": shape.POSITIVE, "image_size": shape.whole(1),
    "split": shape.one_of(splits.NAMES), "variant": shape.one_of(VARIANTS), "epochs": shape.whole(1),
    "limit": shape.whole(0), "data": shape.TEXT, "learning_rate": shape.POSITIVE,
    "init": shape.one_of(INITS), "seed": shape.whole(0),
}  # fmt: skip


def from_spec(spec: Any) -> Cell:
    """The cell of which `Cell.spec` made `spec`.

    Raises:
      ValueError: a field is unknown or missing, or has a value that no cell has.
    """
    shape.check(spec, {}, "spec")
    fields = {"data": "", "learning_rate": LEARNING_RATE} | spec  # older results lack these
    shape.check(fields, _SPEC, "spec")
    if unknown := sorted(set(fields) - set(_SPEC)):
        raise ValueError(f"spec: unknown {', '.join(unknown)}")
    init, seed = fields.pop("init"), fields.pop("seed")
    return Cell(Setting(**fields), init, seed)


def papers(backbone: str) -> Setting:
    """The paper's experiment: its split, epochs and learning rate, the network at its own size."""
    return Setting(backbone, image_size=96 if backbone == "openface" else 224)


def configuration(cell: Cell, ferplus: str = "", weights: str = "", data: str = "") -> Any:
    """The configuration of the run.

    Args:
      ferplus: path of FER+'s fer2013new.csv, for the variant of this name.
      weights: directory of converted weights; empty for the default place.
      data: path of the faces; empty for what is found.

    Raises:
      InputError: the variant needs FER+'s file, and no path was given.
    """
    setting, config = cell.setting, default.get_config()
    overrides: dict[str, Any] = {
        "backbone": setting.backbone,
        "alpha": setting.alpha,
        "image_size": setting.image_size,
        "init": cell.init,
        "weights": weights,
        "seed": cell.seed,
        "init_seed": cell.seed,
        "epochs": setting.epochs,
        "optimizer.learning_rate": (setting.learning_rate,),
        "data.path": data,
        "data.split": setting.split,
        "data.limit": setting.limit,
    }
    if setting.variant == "ferplus":
        if not ferplus:
            raise InputError("--variants=ferplus: expected --ferplus=PATH of FER+'s fer2013new.csv")
        overrides["data.labels"] = ferplus
    config.update_from_flattened_dict(overrides | VARIANTS[setting.variant])
    return config
