"""Layouts: expressions that arrange streams as the columns of a transformer."""

from slm_jax.layouts.chance import Bistream, Masked, Nar, Thinned
from slm_jax.layouts.ctc import Ctc
from slm_jax.layouts.flat import Flat, Group, Stretch
from slm_jax.layouts.grid import Grid, Restored, Row
from slm_jax.layouts.inter import Inter
from slm_jax.layouts.layout import Layout, Placement
from slm_jax.layouts.machine import Machine
from slm_jax.layouts.operators import Stream, Token
from slm_jax.layouts.rows import Copies, Delay, Par
from slm_jax.layouts.scheduler import Scheduler
from slm_jax.layouts.sequences import Seq, Typed
from slm_jax.layouts.states import States
from slm_jax.layouts.text import Text
from slm_jax.layouts.timed import Aligned, Merge, Spans
from slm_jax.layouts.vectors import Vectors
from slm_jax.layouts.word_scheduler import WordScheduler, WordState, word_starts

__all__ = [
    "Aligned",
    "Bistream",
    "Copies",
    "Ctc",
    "Delay",
    "Flat",
    "Grid",
    "Group",
    "Inter",
    "Layout",
    "Machine",
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
    "States",
    "Stream",
    "Stretch",
    "Text",
    "Thinned",
    "Token",
    "Typed",
    "Vectors",
    "WordScheduler",
    "WordState",
    "word_starts",
]
