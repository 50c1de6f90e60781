"""What others published, beside what is measured here: never the same protocol, so never one row.

Codec-SUPERB's board "tiny", category Speech: `web/src/results/data.js` of voidful/Codec-SUPERB at
cfccafc (2026-05), as its authors measured; the rates are its labels.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A row of the board; F0CORR is its own (pitch contours warped onto each other)."""

    name: str
    kbps: float
    mel: float
    pesq_wb: float
    stoi: float
    f0corr: float


CODEC_SUPERB_TINY_SPEECH = (
    Published("EnCodec 24 kHz", 1.5, 1.268, 1.52, 0.799, 0.748),
    Published("EnCodec 24 kHz", 3.0, 1.113, 1.98, 0.861, 0.845),
    Published("EnCodec 24 kHz", 6.0, 1.001, 2.64, 0.910, 0.901),
    Published("EnCodec 24 kHz", 12.0, 0.884, 3.30, 0.943, 0.938),
    Published("EnCodec 24 kHz", 24.0, 0.823, 3.66, 0.960, 0.944),
    Published("DAC 16 kHz", 6.0, 0.513, 3.88, 0.961, 0.940),
    Published("DAC 24 kHz", 24.0, 0.349, 4.35, 0.986, 0.973),
    Published("DAC 44 kHz", 8.0, 0.769, 2.38, 0.890, 0.900),
    Published("SpeechTokenizer", 4.0, 0.802, 2.13, 0.858, 0.864),
    Published("WavTokenizer large, speech, 75 Hz", 0.9, 0.783, 2.02, 0.848, 0.828),
    Published("BigCodec", 1.0, 0.802, 2.21, 0.877, 0.867),
    Published("AUV", 0.5, 0.749, 2.10, 0.850, 0.852),
    Published("LLMCodec", 0.5, 0.713, 2.11, 0.859, 0.843),
)
