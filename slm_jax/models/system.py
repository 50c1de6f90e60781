"""A system of the literature, or of one's own: a layout and the model that reads and writes it."""

from __future__ import annotations

import dataclasses

from flax import nnx

from slm_jax.layouts import Layout
from slm_jax.models.grid_config import GridLMConfig
from slm_jax.models.grid_lm import GridLM
from slm_jax.models.speech_lm import SpeechLM, SpeechLMConfig


@dataclasses.dataclass(frozen=True)
class System:
    """What one file of gin/systems/ describes.

    Attributes:
      layout: how streams become columns.
      model: what reads and predicts them: `SpeechLMConfig` where words are the clock (TASTE), else
        `GridLMConfig`.

    Raises:
      UserError: layout and model do not fit each other.
    """

    layout: Layout
    model: SpeechLMConfig | GridLMConfig

    def __post_init__(self) -> None:
        self.model.check(self.layout)

    def build(self, rngs: nnx.Rngs) -> SpeechLM | GridLM:
        """The model, with random weights."""
        if isinstance(self.model, GridLMConfig):
            return GridLM(self.model, self.layout, rngs)
        return SpeechLM(self.model, rngs)
