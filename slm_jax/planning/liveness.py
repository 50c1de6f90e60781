"""The most bytes that are alive at once in a traced program, in the order of tracing.

    alive       from where a value is made to where it is read last; arguments are the caller's
    fused       what is made number by number is no buffer where it takes no less than those of its
                shape that it is made of: who reads it makes it again, as XLA's fusions do; kernels
                and loops read buffers, and so do products on other than TPUs
    in place    such a result, the carry of a loop or an updated array takes the place of a buffer
                of its size or more that is read last there, of those that it comes from
    loop        its carry, its stacked results, and the most that is alive in one turn
    kernel      its arguments and results
    gathered    weights that lie on several devices, whole and in the dtype of products, from the
                first product of the program, or of a turn of a loop, that reads them to the last

What a compiler adds is not in it: other orders, copies in other layouts, padding of tiles,
fragments, programs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

# Made number by number, or by moving numbers.
_FUSED = frozenset((
    "abs", "add", "add_any", "and", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp",
    "convert_element_type", "copy", "cos", "div", "eq", "erf", "erf_inv", "exp", "exp2",
    "expand_dims", "expm1", "floor", "ge", "gt", "integer_pow", "iota", "is_finite", "le", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "name", "ne", "neg", "nextafter", "not",
    "optimization_barrier", "or", "pad", "pow", "reduce_precision", "rem", "reshape", "rev",
    "round", "rsqrt", "select_n", "sharding_constraint", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "slice", "sqrt", "square", "squeeze", "stop_gradient",
    "sub", "tan", "tanh", "transpose", "xor",
))  # fmt: skip
_CALLS = {
    "checkpoint": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "jit": "jaxpr",
    "pjit": "jaxpr", "remat2": "jaxpr", "shard_map": "jaxpr",
}  # fmt: skip
_LOOPS = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr")}
_PARTS = _LOOPS | {"cond": ("branches",)}
_UNFUSED = frozenset((*_PARTS, "pallas_call"))  # read buffers
_UPDATES = {"dynamic_update_slice", "scatter", "scatter-add"}


@dataclasses.dataclass(eq=False)
class _Value:
    """Something that is read.

    Attributes:
      size: bytes.
      count: numbers.
      buffers: those that hold what it is made of; itself where it is one.
      share: of it that stays on the device, below 1 where others hold the rest.
      source: the argument, if others hold a part of it, that it is made of alone.
      whole: of such an argument, where it has been gathered.
    """

    size: float = 0.0
    count: int = 0
    buffers: frozenset[_Value] = frozenset()
    share: float = 1.0
    source: _Value | None = None
    whole: _Value | None = None


@dataclasses.dataclass
class _Step:
    """What makes buffers.

    Attributes:
      name: of the primitive.
      reads: buffers.
      places: those of them that results may take the place of.
      makes: results.
      inside: bytes that are alive in it alone.
    """

    name: str
    reads: frozenset[_Value]
    places: frozenset[_Value]
    makes: list[_Value]
    inside: float = 0.0


def peak(
    jaxpr: Jaxpr, arguments: Sequence[float], results: Sequence[float], platform: str
) -> float:
    """Bytes, results included, arguments not.

    Args:
      jaxpr: of what one device computes.
      arguments, results: share of each that lies on the device. An argument of which others hold
        a part is gathered for products; of such a result the rest is sent away as soon as it is
        made, that of stacked ones in each turn of the loop.
      platform: "tpu", "gpu" or "cpu".
    """
    unfused = _UNFUSED if platform == "tpu" else _UNFUSED | {"dot_general"}
    steps: list[_Step] = []
    pairs = zip(jaxpr.invars, arguments, strict=True)
    read = [_argument(var, share < 1) for var, share in pairs]
    kept = [_buffer(value, steps) for value in _trace(jaxpr, read, steps, unfused)]
    for value, share in zip(kept, results, strict=True):
        for buffer in value.buffers:
            buffer.share = min(buffer.share, share)
    for step in reversed(steps):  # what is added up lies where the sum does
        if step.name in _FUSED:
            for value in step.reads:
                if value.count >= step.makes[0].count:
                    value.share = min(value.share, step.makes[0].share)
    return _most(steps, kept)


def _most(steps: Sequence[_Step], kept: Iterable[_Value]) -> float:
    """The highest sum of living buffers; those of `kept` live to the end."""
    last = {value: at for at, step in enumerate(steps) for value in (*step.makes, *step.reads)}
    last |= {buffer: len(steps) for value in kept for buffer in value.buffers}
    alive = most = 0.0
    for at, step in enumerate(steps):
        parts = step.name in _LOOPS or step.name in _FUSED  # of parts, or turn by turn
        sizes = [v.size * (v.share if parts else 1.0) for v in step.makes]
        places = [v.size * v.share for v in step.places if last[v] == at]
        most = max(most, alive + sum(sizes) - _in_place(sizes, places) + step.inside)
        alive += sum(v.size * v.share for v in step.makes if last[v] > at)
        alive -= sum(v.size * v.share for v in step.reads if last[v] == at)
    return most


def _in_place(sizes: Iterable[float], places: Iterable[float]) -> float:
    """Bytes of results that take the place of buffers, each the smallest that has room."""
    free, saved = list(places), 0.0
    for size in sizes:
        place = min((one for one in free if one >= size), default=None)
        if place is not None:
            free.remove(place)
            free.append(place - size)
            saved += size
    return saved


def _trace(
    jaxpr: Jaxpr, arguments: Sequence[_Value], steps: list[_Step], unfused: frozenset[str]
) -> list[_Value]:
    """Appends the steps of a program, its calls resolved, and returns its results."""
    known = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= {var: _Value() for var in jaxpr.constvars}

    def look_up(atom: Any) -> _Value:
        return _Value() if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        name, read = equation.primitive.name, [look_up(atom) for atom in equation.invars]
        if name in _CALLS:
            part = equation.params[_CALLS[name]]
            made = _trace(getattr(part, "jaxpr", part), read, steps, unfused)
        elif name in _FUSED:
            made = [_fused(var, read, steps) for var in equation.outvars]
        else:
            made = [_new(var) for var in equation.outvars]
            if name in unfused:
                read = [_buffer(value, steps) for value in read]
            if name == "dot_general":
                read = [_gathered(value, steps) for value in read]
            inside = _inside(equation, read, unfused)
            places = _buffers(read[_carried(equation)])
            steps.append(_Step(name, _buffers(read), places, made, inside))
        known |= zip(equation.outvars, made, strict=True)
    return [look_up(atom) for atom in jaxpr.outvars]


def _inside(equation: Any, read: Sequence[_Value], unfused: frozenset[str]) -> float:
    """The most that is alive in one turn of a loop, or in a branch."""
    most = 0.0
    for field in _PARTS.get(equation.primitive.name, ()):
        found = equation.params[field]
        for closed in found if isinstance(found, tuple) else (found,):
            inner, steps = closed.jaxpr, []
            given = [_Value() for _ in inner.invars]
            if len(read) == len(given):
                pairs = zip(inner.invars, read, strict=True)
                given = [_argument(var, value.source is not None) for var, value in pairs]
            results = [_buffer(value, steps) for value in _trace(inner, given, steps, unfused)]
            most = max(most, _most(steps, results))
    return most


def _carried(equation: Any) -> slice:
    """Which arguments a result may take the place of."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return slice(params["num_consts"], params["num_consts"] + params["num_carry"])
    if name == "while":
        return slice(params["cond_nconsts"] + params["body_nconsts"], None)
    return slice(0, int(name in _UPDATES))


def _argument(var: Any, partly: bool) -> _Value:
    value = _Value(_bytes(var), math.prod(var.aval.shape))
    value.source = value if partly else None
    return value


def _new(var: Any) -> _Value:
    return _of_size(_bytes(var), math.prod(var.aval.shape))


def _of_size(size: float, count: int) -> _Value:
    """A buffer."""
    value = _Value(size, count)
    value.buffers = frozenset((value,))
    return value


def _gathered(value: _Value, steps: list[_Step]) -> _Value:
    """The value with the parts of others, which are sent for once."""
    if value.source is None:
        return value
    if value.source.whole is None:
        value.source.whole = _of_size(value.size, value.count)
        steps.append(_Step("all_gather", frozenset(), frozenset(), [value.source.whole]))
    return value.source.whole


def _fused(var: Any, read: Sequence[_Value], steps: list[_Step]) -> _Value:
    value = _Value(_bytes(var), math.prod(var.aval.shape), _buffers(read))
    if not value.buffers:
        value.source = next((one.source for one in read if one.source), None)
    whole = sum(buffer.size for buffer in value.buffers if buffer.count >= value.count)
    return _buffer(value, steps) if value.size < whole else value


def _buffer(value: _Value, steps: list[_Step]) -> _Value:
    """The value as a buffer; what is made of arguments alone stays what it is."""
    if value in value.buffers or not value.buffers:
        return value
    made = _of_size(value.size, value.count)
    steps.append(_Step("copy", value.buffers, value.buffers, [made]))
    return made


def _buffers(values: Iterable[_Value]) -> frozenset[_Value]:
    return frozenset().union(*(value.buffers for value in values))


def _bytes(var: Any) -> float:
    if getattr(var.aval, "memory_space", None) == jax.memory.Space.Host:
        return 0.0
    return float(math.prod(var.aval.shape) * var.aval.dtype.itemsize)
