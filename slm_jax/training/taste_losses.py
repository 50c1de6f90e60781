"""What the TASTE tokenizer learns from: losses of one batch, and the passes that stages share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

from slm_jax.nn.tree import Params
from slm_jax.tokenizers.taste_decoder import Frames, owners, pick
from slm_jax.tokenizers.taste_network import TasteNetwork, aligned
from slm_jax.tokenizers.taste_prosody import is_spoken

if TYPE_CHECKING:
    from slm_jax.training.taste_stages import TasteTraining


def losses(
    network: TasteNetwork,
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    told: bool,
    quantized: jax.Array,
    training: TasteTraining,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
    """Total loss, named losses, and the latents [B, W, L] before quantisation.

    Args:
      told: whether the decoder hears latents; without them the aggregator does not run.
      quantized: 0 or 1, whether it hears them through the quantizer.
    """
    words = batch["word_mask"].shape[1]
    levels = len(network.config.vocab)
    mel, ids, index = batch["mel"], batch["ids"], batch["words"]
    speaker = network.speaker(params, batch)
    decoder = network.part(params, "decoder")
    hidden, prior = decoder.read(ids, speaker)
    durations = aligned(jax.lax.stop_gradient(prior), batch)
    latents = jnp.zeros((*batch["word_mask"].shape, network.config.latent))
    if told:
        latents = network.latents(params, batch, words, durations)
    coin, draw, silence, dropout = jax.random.split(key, 4)
    fewer = jax.random.randint(draw, (), 1, levels + 1)
    used = jnp.where(jax.random.uniform(coin) < training.dropout_levels, fewer, levels)
    q = network.quantize(params, latents, batch["word_mask"], used)
    heard = quantized * q.latents + (1 - quantized) * latents
    # Now and then an utterance without its codes, so that text alone can be spoken too.
    spoken = jax.random.uniform(silence, (len(ids), 1, 1)) >= training.dropout_codes
    heard = heard * batch["word_mask"][..., None] * spoken
    hidden, log_durations = decoder.tell(hidden, ids, index, heard)
    real = Frames(mel, batch["pitch"], batch["voiced"])
    predicted = decoder.write(hidden, durations, real, dropout)

    frame_mask = (jnp.arange(mel.shape[1])[None] < batch["frames"][:, None]).astype(mel.dtype)
    expected = pick(prior, owners(durations, mel.shape[1]))
    symbol_mask = (ids > 0).astype(mel.dtype)
    log_target = jnp.log(jnp.maximum(durations, 1).astype(mel.dtype))
    own = jax.nn.one_hot(index, words, dtype=mel.dtype)
    own *= (is_spoken(ids) * spoken[..., 0])[..., None]
    word_target = jnp.einsum("bn,bnw->bw", durations.astype(mel.dtype), own)
    lengths = jnp.exp(jnp.clip(log_durations, -2, 5)) * symbol_mask
    word_length = jnp.einsum("bn,bnw->bw", lengths, own)
    word_error = jnp.abs(jnp.log(word_length + 1) - jnp.log(word_target + 1))
    voiced = batch["voiced"] * frame_mask
    named = {
        "mel": _mean(jnp.mean(_distance(predicted.mel - mel), -1), frame_mask),
        "prior": _mean(jnp.mean((expected - mel) ** 2, -1), frame_mask),
        "pitch": _mean(_distance(predicted.pitch - batch["pitch"]), voiced),
        "voicing": _mean(
            optax.sigmoid_binary_cross_entropy(predicted.voicing, batch["voiced"]), frame_mask
        ),
        "duration": _mean((log_durations - log_target) ** 2, symbol_mask),
        "word_duration": _mean(word_error, batch["word_mask"]),
        "commitment": quantized * q.commitment,
    }
    weights = {"prior": 0.5, "pitch": 0.5, "voicing": 0.2, "duration": training.duration_weight}
    weights |= {"word_duration": 2 * training.duration_weight, "commitment": training.commitment}
    total = sum(weights.get(name, 1.0) * value for name, value in named.items())
    return total, (named, latents)


def resynthesis(
    network: TasteNetwork,
    params: Params,
    batch: dict[str, jax.Array],
    told: float,
    quantized: float,
) -> jax.Array:
    """[B, n] samples of the utterances as the tokenizer would say them at their own durations."""
    latents, durations, hidden, _ = heard_words(network, params, batch)
    q = network.quantize(params, latents, batch["word_mask"], len(network.config.vocab))
    heard = told * (quantized * q.latents + (1 - quantized) * latents)
    decoder = network.part(params, "decoder")
    heard = heard * batch["word_mask"][..., None]
    hidden, _ = decoder.tell(hidden, batch["ids"], batch["words"], heard)
    shown = decoder.sound(hidden, durations, batch["mel"].shape[1])
    return network.part(params, "vocoder")(*shown)


def heard_words(
    network: TasteNetwork, params: Params, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Latents [B, W, L], durations [B, N], the text's states [B, N, D] and speakers [B, E]."""
    speaker = network.speaker(params, batch)
    hidden, prior = network.part(params, "decoder").read(batch["ids"], speaker)
    durations = aligned(prior, batch)
    latents = network.latents(params, batch, batch["word_mask"].shape[1], durations)
    return latents, durations, hidden, speaker


def _distance(error: jax.Array) -> jax.Array:
    return jnp.abs(error) + 0.5 * error**2


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(x * mask) / jnp.maximum(mask.sum(), 1)
