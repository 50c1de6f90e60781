"""Layouts: expressions that arrange streams as the columns of a transformer."""

from slm_jax.layouts.chance import Bistream, Masked, Nar, Thinned
from slm_jax.layouts.grid import Grid, Restored, Row
from slm_jax.layouts.layout import Layout, Placement
from slm_jax.layouts.operators import Stream, Text, Token
from slm_jax.layouts.rows import Copies, Delay, Par
from slm_jax.layouts.scheduler import Scheduler
from slm_jax.layouts.sequences import Flat, Group, Inter, Seq, Stretch, Typed
from slm_jax.layouts.timed import Aligned, Merge, Spans
from slm_jax.layouts.word_scheduler import WordScheduler, WordState, word_starts

__all__ = [
    "Aligned",
    "Bistream",
    "Copies",
    "Delay",
    "Flat",
    "Grid",
    "Group",
    "Inter",
    "Layout",
    "Masked",
    "Merge",
    "Nar",
    "Par",
    "Placement",
    "Restored",
    "Row",
    "Scheduler",
    "Seq",
    "Spans",
    "Stream",
    "Stretch",
    "Text",
    "Thinned",
    "Token",
    "Typed",
    "WordScheduler",
    "WordState",
    "word_starts",
]
