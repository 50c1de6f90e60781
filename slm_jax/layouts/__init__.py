"""Layouts: expressions that arrange streams as the columns of a transformer."""

from slm_jax.layouts.grid import Grid, Restored, Row
from slm_jax.layouts.layout import Layout, Placement
from slm_jax.layouts.operators import Delay, Par, Stream, Text
from slm_jax.layouts.scheduler import Scheduler, State, word_starts

__all__ = [
    "Delay",
    "Grid",
    "Layout",
    "Par",
    "Placement",
    "Restored",
    "Row",
    "Scheduler",
    "State",
    "Stream",
    "Text",
    "word_starts",
]
