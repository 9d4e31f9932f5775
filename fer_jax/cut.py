"""The cut: where a training step stops depending on what learns, so that the rest is computed once an image.

The forward pass is traced once, and its equations are parted. Those that a learning weight, the random
key, a live batch statistic or a mark of batch mixing reaches are *live* and run in every step. Of the
others, those that the images reach are *upstream*: their results are the same in every epoch, and what
live equations read of them is what *crosses*. The rest (say a frozen batch norm's folded scale) depends on
weights alone and is done again wherever it is needed.

A value crosses only if its leading axis is the batch (`features` tries that at another size of it before it
computes) and if the inference program computes the very same value. In inference no image touches another,
so nothing that crosses can carry a trace of its batch, and training and evaluation start from the same
features.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend import core

from fer_jax import freezing
from fer_jax.models import TRIAL_BATCH
from fer_jax.models.convolution import KEPT_WHOLE
from fer_jax.models.layers import BATCH_MIXING

FACES, KEY, LOGITS = "faces", "key", "logits"

# forward(params, batch_stats, faces, key) -> (logits, batch_stats)
Forward = Callable[[Any, Any, jax.Array, Any], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Value:
    """One value that crosses: the layer that makes it, its shape for one image, its dtype."""

    layer: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes for one image."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A forward pass in two parts, for any batch size; its parts may be jitted, vmapped, differentiated.

    Attributes:
      crossing: what crosses, in order.
      fingerprint: sha256 of how the crossing values are made (not of the weights).
      hoisted: paths ("params/backbone/conv1/kernel") of the variables that `upstream` reads.
      kept: paths of the variables that learn or that `downstream` or `evaluate` reads.
    """

    crossing: tuple[Value, ...]
    fingerprint: str
    hoisted: frozenset[str]
    kept: frozenset[str]
    _part: Callable[[str, int], "_Part"] = dataclasses.field(repr=False)

    @property
    def bytes_per_image(self) -> int:
        """Bytes of all that crosses for one image."""
        return sum(value.nbytes for value in self.crossing)

    def upstream(self, params: Any, batch_stats: Any, faces: Any) -> tuple[jax.Array, ...]:
        """What crosses, one array [B, ...] each, of uint8 faces [B, H, W] or [B, H, W, 3].

        Raises:
          ValueError: at this batch size the pass traces to other equations. So in `downstream`, `evaluate`.
        """
        values = _flatten(params, batch_stats) | {FACES: faces}
        return tuple(self._part("upstream", faces.shape[0])(values, ()).values())

    def downstream(
        self, params: Any, batch_stats: Any, crossing: Sequence[Any], key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The rest of the training-mode pass: logits [B, classes] and the new batch statistics.

        `params` and `batch_stats` are the whole trees or those of `tail`; the new statistics have the
        tree of `batch_stats`.
        """
        values = _flatten(params, batch_stats) | {KEY: key}
        results = self._part("downstream", crossing[0].shape[0])(values, crossing)

        def new(path: Any, old: Any) -> Any:
            return results.get("/".join(["batch_stats", *(key.key for key in path)]), old)

        return results[LOGITS], jax.tree_util.tree_map_with_path(new, batch_stats)

    def evaluate(self, params: Any, batch_stats: Any, crossing: Sequence[Any]) -> jax.Array:
        """The rest of the inference-mode pass: logits [B, classes]. The trees as for `downstream`."""
        return self._part("evaluate", crossing[0].shape[0])(_flatten(params, batch_stats), crossing)[LOGITS]

    def tail(self, params: Any, batch_stats: Any) -> tuple[Any, Any]:
        """The two trees without the variables that only `upstream` reads."""
        flat = _flatten(params, batch_stats)
        trees = _nest({path: leaf for path, leaf in flat.items() if path in self.kept})
        # The parts stay, be they empty: {"backbone": {}, "head": ...}.
        params, batch_stats = (
            {part: tail.get(part, {}) for part in whole}
            for tail, whole in zip(trees, (params, batch_stats), strict=True)
        )
        return params, batch_stats

    def upstream_variables(self, params: Any, batch_stats: Any) -> dict[str, Any]:
        """The variables that `upstream` reads, by path: what features depend on beside the faces."""
        flat = _flatten(params, batch_stats)
        return {path: flat[path] for path in sorted(self.hoisted)}


def merge(whole: Any, tail: Any) -> Any:
    """`whole` with the leaves of `tail` in their places: undoes `Cut.tail` for one of its trees."""
    return unflatten_dict(flatten_dict(whole, keep_empty_nodes=True) | flatten_dict(tail))


def split(
    forward: Forward,
    params: Any,
    batch_stats: Any,
    learning: frozenset[str],
    face_shape: tuple[int, ...] = (48, 48),
) -> tuple[Cut | None, str]:
    """Finds the cut. Nothing is computed.

    Args:
      forward: the whole pass, preprocessing included: (params, batch_stats, faces uint8 [B, *face_shape],
        key) -> (logits [B, classes], batch_stats); in training mode with a key of `jax.random.key`, in
        inference mode with None.
      params: {"backbone": {layer: ...}, "head": ...}; arrays or their shapes.
      batch_stats: likewise; {} where there are none.
      learning: names of the backbone's layers that learn; the head always does.

    Returns:
      The cut and "", or None and the reason why there is none.
    """
    variables = _flatten(params, batch_stats)
    trees = [{"backbone": {}, "head": {}} | tree for tree in (params, batch_stats)]
    labels = _flatten(*(freezing.labels(tree, learning) for tree in trees))
    frozen = frozenset(path for path, label in labels.items() if label == freezing.FROZEN)
    if not frozen:
        return None, "nothing is frozen"

    @functools.cache
    def program(mode: str, batch: int) -> _Program:
        return _trace(forward, mode, variables, (batch, *face_shape))

    training, evaluation = program("train", TRIAL_BATCH), program("evaluate", TRIAL_BATCH)
    identities = _identities(training)
    twins = {identity: var for var, identity in _identities(evaluation).items()}

    def may_cross(var: Any) -> bool:
        return var.aval.shape[:1] == (TRIAL_BATCH,) and identities[var] in twins

    def read_by(crossing: Sequence[Any]) -> frozenset[str]:
        return frozenset(_slice(training, [], _numbered(crossing)).inputs) & frozen

    crossing = _frontier(training, set(variables) - frozen | {KEY}, may_cross)
    if not read_by(crossing):
        if read_by(_frontier(training, {KEY}, may_cross)):
            return None, "a layer that learns stands before the frozen ones"
        return None, "augmentation changes the images that the frozen layers read"
    places = {
        "train": training.places(crossing),
        "evaluate": evaluation.places([twins[identities[var]] for var in crossing]),
    }

    @functools.cache
    def part(name: str, batch: int) -> _Part:
        mode = "evaluate" if name == "evaluate" else "train"
        here = program(mode, batch)
        values = here.at(places[mode], like=program(mode, TRIAL_BATCH))
        return (
            _slice(here, [], _numbered(values)) if name == "upstream" else _slice(here, values, here.results)
        )

    read = {path for name in ("downstream", "evaluate") for path in part(name, TRIAL_BATCH).inputs}
    if FACES in read:
        return None, "evaluation reads the images in other places than training does"
    cut = Cut(
        crossing=tuple(_value(training, var) for var in crossing),
        fingerprint=_sha256(*(identities[var] for var in crossing)),
        hoisted=read_by(crossing),
        kept=(frozenset(variables) - frozen) | (read & frozen),
        _part=part,
    )
    return cut, ""


@dataclasses.dataclass(frozen=True, eq=False)
class _Program:
    """A traced pass without nested jit calls.

    Attributes:
      inputs: names of the jaxpr's inputs: paths of the variables, then `FACES` and `KEY`.
      results: `LOGITS` and the statistics that change, by path: what the pass is for.
      jaxpr, consts: the pass itself.
    """

    inputs: tuple[str, ...]
    results: dict[str, Any]
    jaxpr: core.Jaxpr
    consts: Sequence[Any]

    def places(self, variables: Sequence[core.Var]) -> list[tuple[int, int]]:
        """Where each is made: (equation, output), or (-1, input)."""
        made = {var: (-1, i) for i, var in enumerate(self.jaxpr.invars)}
        made |= {var: (n, i) for n, eqn in enumerate(self.jaxpr.eqns) for i, var in enumerate(eqn.outvars)}
        return [made[var] for var in variables]

    def at(self, places: Sequence[tuple[int, int]], like: "_Program") -> list[core.Var]:
        """The variables at the `places` of `like`, the same pass traced at another batch size."""
        if [eqn.primitive for eqn in self.jaxpr.eqns] != [eqn.primitive for eqn in like.jaxpr.eqns]:
            raise ValueError("the forward pass traces to other equations at another batch size")
        return [self.jaxpr.invars[i] if n < 0 else self.jaxpr.eqns[n].outvars[i] for n, i in places]


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """A piece of a program: names of the inputs it reads, names of its results, the piece itself."""

    inputs: tuple[str, ...]
    results: tuple[str, ...]
    piece: core.ClosedJaxpr

    def __call__(self, values: dict[str, Any], crossing: Iterable[Any]) -> dict[str, jax.Array]:
        results = core.jaxpr_as_fun(self.piece)(*(values[name] for name in self.inputs), *crossing)
        return dict(zip(self.results, results, strict=True))


def _trace(forward: Forward, mode: str, variables: dict[str, Any], faces_shape: tuple[int, ...]) -> _Program:
    def run(flat: dict[str, Any], faces: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        if mode == "evaluate":
            return {LOGITS: forward(*_nest(flat), faces, None)[0]}
        logits, new_stats = forward(*_nest(flat), faces, key)
        return {LOGITS: logits} | _flatten({}, new_stats)

    faces = jax.ShapeDtypeStruct(faces_shape, jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    closed, outputs = jax.make_jaxpr(run, return_shape=True)(variables, faces, key)
    traced, renamed = closed.jaxpr, dict[core.Var, Any]()
    equations = list(_inlined(traced, renamed, None))
    outvars = [_renamed(atom, renamed) for atom in traced.outvars]
    inputs = (*sorted(variables), FACES, KEY)
    given = dict(zip(inputs, traced.invars, strict=True))
    results = dict(zip(sorted(outputs), outvars, strict=True))
    results = {name: atom for name, atom in results.items() if given.get(name) is not atom}
    jaxpr = traced.replace(outvars=outvars, eqns=equations)
    return _Program(inputs, results, jaxpr, closed.consts)


def _inlined(jaxpr: core.Jaxpr, renamed: dict[core.Var, Any], source: Any) -> Iterator[core.JaxprEqn]:
    """The equations of `jaxpr`, in fresh variables, nested jit calls (but `KEPT_WHOLE`) written out.

    `renamed` maps the variables of `jaxpr` to the fresh ones; it is filled as the equations come.
    """
    for eqn in jaxpr.eqns:
        arguments, origin = [_renamed(atom, renamed) for atom in eqn.invars], source or eqn.source_info
        inner = eqn.params.get("jaxpr")
        written_out = eqn.primitive.name in ("jit", "pjit") and eqn.params["name"] not in KEPT_WHOLE
        if written_out and isinstance(inner, core.ClosedJaxpr) and not inner.consts:
            inside = dict(zip(inner.jaxpr.invars, arguments, strict=True))
            yield from _inlined(inner.jaxpr, inside, origin)
            results = [_renamed(atom, inside) for atom in inner.jaxpr.outvars]
        else:
            fresh = [core.Var(var.aval) for var in eqn.outvars]
            yield eqn.replace(invars=arguments, outvars=fresh, source_info=origin)
            results = list(fresh)
        renamed.update(zip(eqn.outvars, results, strict=True))


def _frontier(program: _Program, live: set[str], may_cross: Callable[[Any], bool]) -> list[core.Var]:
    """What the live equations and the results read of the images, each value fit to cross.

    Where something there may not cross, the equation that makes it counts as live too.
    """
    named = dict(zip(program.inputs, program.jaxpr.invars, strict=True))
    held: set[core.Var] = set()
    while True:
        changing, upstream = {named[name] for name in live}, {named[FACES]}
        read: list[core.Var] = []
        for eqn in program.jaxpr.eqns:
            used = _variables(eqn.invars)
            reached = not changing.isdisjoint(used) or not held.isdisjoint(eqn.outvars)
            if reached or eqn.effects or _mixes(eqn):
                changing.update(eqn.outvars)
                read += [var for var in used if var in upstream]
            elif not upstream.isdisjoint(used):
                upstream.update(eqn.outvars)
        read += [var for var in _variables(program.results.values()) if var in upstream]
        unfit = [var for var in read if not may_cross(var)]
        if not unfit:
            return list(dict.fromkeys(read))
        held.update(unfit)


def _mixes(eqn: core.JaxprEqn) -> bool:
    """Whether an equation carries the mark of batch mixing, itself or within."""
    if eqn.primitive.name == "name" and eqn.params["name"] == BATCH_MIXING:
        return True
    return any(_mixes(inner) for jaxpr in core.jaxprs_in_params(eqn.params) for inner in jaxpr.eqns)


def _slice(program: _Program, sources: Sequence[core.Var], targets: dict[str, Any]) -> _Part:
    """The piece of `program` that makes `targets` of `sources` and of those inputs that it needs."""
    given = set(sources)
    needed = set(_variables(targets.values())) - given
    equations: list[core.JaxprEqn] = []
    for eqn in reversed(program.jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            equations.insert(0, eqn)
            needed |= set(_variables(eqn.invars)) - given
    inputs = {n: v for n, v in zip(program.inputs, program.jaxpr.invars, strict=True) if v in needed}
    consts = {v: c for v, c in zip(program.jaxpr.constvars, program.consts, strict=True) if v in needed}
    piece = program.jaxpr.replace(
        constvars=list(consts),
        invars=[*inputs.values(), *sources],
        outvars=list(targets.values()),
        eqns=equations,
    )
    return _Part(tuple(inputs), tuple(targets), core.ClosedJaxpr(piece, list(consts.values())))


def _identities(program: _Program) -> dict[core.Var, str]:
    """For every variable a hash of how it is made of inputs: equal hashes, equal values."""
    made = {var: name for name, var in zip(program.inputs, program.jaxpr.invars, strict=True)}
    made |= {var: _array_hash(c) for var, c in zip(program.jaxpr.constvars, program.consts, strict=True)}
    for eqn in program.jaxpr.eqns:
        arguments = [_array_hash(v.val) if isinstance(v, core.Literal) else made[v] for v in eqn.invars]
        identity = _sha256(_words(program, eqn), *arguments, *map(_array_hash, _inner_arrays(eqn)))
        made |= {var: f"{identity}:{i}" for i, var in enumerate(eqn.outvars)}
    return made


def _words(program: _Program, eqn: core.JaxprEqn) -> str:
    """What an equation makes of its arguments, in words."""
    if not any(core.jaxprs_in_params(eqn.params)):  # most: several times as fast as printing
        types = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
        return f"{eqn.primitive} {sorted(eqn.params.items())} {types}"
    # Printed alone, an equation has its variables named in order of appearance.
    free = list(dict.fromkeys(_variables(eqn.invars)))
    return str(program.jaxpr.replace(constvars=[], invars=free, outvars=eqn.outvars, eqns=[eqn]))


def _inner_arrays(eqn: core.JaxprEqn) -> Iterator[Any]:
    """Arrays inside an equation's own programs, which its text may leave out or shorten."""
    for param in eqn.params.values():
        for closed in param if isinstance(param, tuple | list) else [param]:
            if isinstance(closed, core.ClosedJaxpr):
                yield from closed.consts
    for jaxpr in core.jaxprs_in_params(eqn.params):
        for inner in jaxpr.eqns:
            yield from (atom.val for atom in inner.invars if isinstance(atom, core.Literal))
            yield from _inner_arrays(inner)


def _value(program: _Program, var: Any) -> Value:
    layer = FACES
    for eqn in program.jaxpr.eqns:
        if var in eqn.outvars:  # Flax's scopes: Classifier/backbone/LAYER
            scopes = str(eqn.source_info.name_stack).split("/")
            layer = scopes[min(2, len(scopes) - 1)] or "preprocessing"
    return Value(layer, var.aval.shape[1:], np.dtype(var.aval.dtype))


def _variables(atoms: Iterable[Any]) -> list[core.Var]:
    return [atom for atom in atoms if isinstance(atom, core.Var)]


def _renamed(atom: Any, names: dict[core.Var, Any]) -> Any:
    return atom if isinstance(atom, core.Literal) else names.get(atom, atom)


def _numbered(values: Sequence[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def _flatten(params: Any, batch_stats: Any) -> dict[str, Any]:
    return flatten_dict({"params": params, "batch_stats": batch_stats}, sep="/")


def _nest(flat: dict[str, Any]) -> tuple[Any, Any]:
    nested = unflatten_dict(flat, sep="/")
    return nested.get("params", {}), nested.get("batch_stats", {})


def _array_hash(value: Any) -> str:
    array = np.asarray(value)
    return _sha256(f"{array.dtype}{array.shape}", array.tobytes())


def _sha256(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part if isinstance(part, bytes) else part.encode()).digest())
    return total.hexdigest()
