"""What `launch/decode.py` runs; bound by gin/decode.gin."""

from __future__ import annotations

import dataclasses

from slm_jax.decoding.engine import DecodeLimits
from slm_jax.decoding.samplers import Sampling


@dataclasses.dataclass(frozen=True)
class DecodeJob:
    """How a checkpoint is made to speak.

    Attributes:
      checkpoint: a run, its checkpoints folder, or one step; None only for --reconstruct.
      average: takes the average of the weights where the run kept one (`Optimizer.ema`).
      text: sampler of the text row (TASTE's published setting by default).
      speech: sampler of the codebook levels.
      limits: how much is said.
      language: of prompts and text, ISO 639 code.
      asr: Whisper that hears spoken prompts; a name of data_pipelines/fetch.py, or a folder.
      pronunciations: dictionary that the tokenizer reads by; a fetched one's name, or a file.
      taste: folder of the TASTE tokenizer; None for the starter that comes with the package.
      seed: of the samplers.
    """

    checkpoint: str | None = None
    average: bool = True
    text: Sampling = Sampling(temperature=0.5, top_p=0.3, repetition_penalty=1.1)
    speech: Sampling = Sampling()
    limits: DecodeLimits = DecodeLimits()
    language: str = "en"
    asr: str = "whisper_tiny_en"
    pronunciations: str = "pronunciations"
    taste: str | None = None
    seed: int = 0
