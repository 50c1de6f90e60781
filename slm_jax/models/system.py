"""A system of the literature, or of one's own: a layout and the model that reads and writes it."""

from __future__ import annotations

import dataclasses

from slm_jax.layouts import Layout
from slm_jax.models.speech_lm import SpeechLMConfig


@dataclasses.dataclass(frozen=True)
class System:
    """What one file of gin/systems/ describes.

    Raises:
      UserError: layout and model do not fit each other.
    """

    layout: Layout
    model: SpeechLMConfig

    def __post_init__(self) -> None:
        self.model.check(self.layout)
