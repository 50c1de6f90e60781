"""What happens to speech on its way: noise, another speed, a telephone, a codec at a low rate."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from fractions import Fraction

import av
import numpy as np

from slm_jax.audio.decode import load
from slm_jax.audio.tempo import tempo
from slm_jax.data.schema import AUDIO_RATE

TELEPHONE = (300.0, 3400.0)  # Hz, ITU-T G.712's pass band
OPUS_RATE = 6_000  # bit/s, the least that libopus offers


def white_noise(audio: np.ndarray, snr: float = 10.0, seed: int = 0) -> np.ndarray:
    """Adds Gaussian noise `snr` dB below the mean power of the whole recording.

    Args:
      audio: float32 [n].
      snr: signal-to-noise ratio, dB.
      seed: of the noise.

    Returns:
      float32 [n]; not clipped.
    """
    noise = np.random.default_rng(seed).normal(size=len(audio))
    power = np.mean(np.square(audio, dtype=np.float64)) / 10 ** (snr / 10)
    return (audio + noise * np.sqrt(power)).astype(np.float32)


def telephone(audio: np.ndarray) -> np.ndarray:
    """Nothing below 300 Hz or above 3400 Hz: a brick wall in the spectrum, without delay.

    Args:
      audio: float32 [n], 16 kHz mono.
    """
    spectrum = np.fft.rfft(audio)
    hertz = np.fft.rfftfreq(len(audio), 1 / AUDIO_RATE)
    spectrum[(hertz < TELEPHONE[0]) | (hertz > TELEPHONE[1])] = 0
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


def opus(audio: np.ndarray, rate: int = OPUS_RATE) -> tuple[np.ndarray, int]:
    """Through libopus and back: constant bit rate, frames of 20 ms, tuned for speech.

    Args:
      audio: float32 [n], 16 kHz mono.
      rate: bit/s.

    Returns:
      float32 [n], the codec's delay taken out; and the bits of its packets, the container's apart.
    """
    file, bits = io.BytesIO(), 0
    with av.open(file, "w", format="ogg") as container:
        options = {"vbr": "off", "application": "voip", "frame_duration": "20"}
        stream = container.add_stream("libopus", rate=AUDIO_RATE, layout="mono", options=options)
        stream.bit_rate = rate
        # The packets behind the last sample hold what the codec's delay pushes out.
        for frame in (_frame(audio, Fraction(1, AUDIO_RATE)), None):
            for packet in stream.encode(frame):
                bits += 8 * packet.size
                container.mux(packet)
    decoded = load(file.getvalue(), AUDIO_RATE, decoder="pyav")[: len(audio)]
    return np.pad(decoded, (0, len(audio) - len(decoded))), bits


def _frame(audio: np.ndarray, time_base: Fraction) -> av.AudioFrame:
    samples = np.ascontiguousarray(audio, np.float32)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = AUDIO_RATE, time_base, 0
    return frame


DEGRADATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "white noise, 10 dB": white_noise,
    "slower, x0.8": lambda audio: tempo(audio, 0.8),
    "faster, x1.2": lambda audio: tempo(audio, 1.2),
    "telephone band": telephone,
}
