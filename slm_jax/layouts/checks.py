"""What a layout refuses: expressions that cannot be, and datasets that it does not fit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from slm_jax.errors import UserError
from slm_jax.layouts.grid import Row
from slm_jax.layouts.operators import AnyStream
from slm_jax.layouts.vectors import Vectors
from slm_jax.streams import StreamSpec


def check_rows(rows: Sequence[Row], initial: bool) -> None:
    """Raises a ValueError where ids of a row could be taken for others, or rows for one another."""
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"of: a stream stands in it twice: {', '.join(names)}")
    if sum(row.width > 0 for row in rows) > 1:
        raise ValueError("of: there may be one row of Vectors, not more")
    for row in rows:
        for (low, high), (begin, end) in itertools.pairwise(sorted(row.ranges)):
            if begin < high:
                raise ValueError(
                    f"of: row {row.name} has streams of ids {low} to {high - 1} and {begin} to "
                    f"{end - 1}: set Stream.offset"
                )
        others = (low <= row.init < high for low, high in row.ranges[1:])
        if initial and any(others) and row.init == row.ranges[0][1]:
            raise ValueError(
                f"of: the INIT id {row.init} of row {row.name}, by default the one after the first "
                "stream's, is an id of another stream: set Stream.init"
            )


def check_streams(
    layout: str, streams: Sequence[AnyStream], specs: Mapping[str, StreamSpec], source: str
) -> None:
    """`Layout.check` of the streams that the dataset should have."""
    for stream in streams:
        family = stream.family
        if family not in specs:
            raise UserError(
                f"layout {layout}: {source} has no stream {family!r}, only "
                f"{', '.join(sorted(specs))}",
                f"tokenize it with {family}, or name another family in the layout",
            )
        spec = specs[family]
        here = f"layout {layout}: stream {family!r} of {source}"
        if isinstance(stream, Vectors):
            if spec.kind != "continuous" or spec.width != stream.width:
                raise UserError(
                    f"{here} is {spec.kind}, with vectors of {spec.width} numbers; the layout says "
                    f"{stream.width}",
                    "set Vectors.width to that of the encoder that made the stream",
                )
        elif spec.vocab[stream.first : stream.first + len(stream.vocab)] != stream.vocab:
            raise UserError(
                f"{here} has codes per level {spec.vocab}, the layout says {stream.vocab} from "
                f"level {stream.first} on",
                "set the layout's vocab to that of the tokenizer that made the stream",
            )
        if stream.rate and stream.rate != spec.clock:
            raise UserError(
                f"{here} has {spec.clock} items a second, the layout says {stream.rate}",
                "set Stream.rate to that of the tokenizer",
            )
