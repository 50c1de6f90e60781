"""The speech language model: a text LLM that also reads and writes the speech rows of a layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from slm_jax.errors import UserError
from slm_jax.layouts import Layout
from slm_jax.models.backbone import Backbone, BackboneConfig, KVCache, init_cache
from slm_jax.models.embeddings import CodeEmbedding, Fusion
from slm_jax.models.heads import Latent, LatentHead, TokenHeads, WordTokenHeads
from slm_jax.nn.tree import Params, check_names, flatten, unflatten


@dataclasses.dataclass(frozen=True)
class SpeechLMConfig:
    """Sizes of the model around the backbone.

    Attributes:
      codebooks: codes per speech level, coarse first, without INIT and PAD.
      backbone: None for that of the text LLM which the run starts from.
      code_width: width of the code embeddings that are summed over levels.
      head: "tokens" for one softmax a level; "word_tokens" for one that also reads the word whose
        code it predicts (`WordTokenHeads`); "continuous" for one latent of all levels, which needs
        a layout that puts a word's levels in one column.
      latent_width: width L of the codebooks' vectors; only for "continuous".
      logvar: "global" for one variance vector, "linear" for one per column; only for "continuous".
      fusion_init: scalars of text and speech before the softmax.
    """

    codebooks: tuple[int, ...]
    backbone: BackboneConfig | None = None
    code_width: int = 256
    head: Literal["tokens", "word_tokens", "continuous"] = "tokens"
    latent_width: int = 0
    logvar: Literal["global", "linear"] = "global"
    fusion_init: tuple[float, float] = (2.0, -2.0)

    def __post_init__(self) -> None:
        if not self.codebooks or min(self.codebooks) < 1:
            raise ValueError("codebooks must give a positive size for at least one level")
        if self.code_width < 1:
            raise ValueError("code_width must be positive")
        if self.head == "continuous" and self.latent_width < 1:
            raise ValueError("latent_width must be positive with the continuous head")
        if self.head == "continuous" and len(set(self.codebooks)) > 1:
            raise ValueError("codebooks must be of one size with the continuous head")

    def with_backbone(self, backbone: BackboneConfig, layout: Layout) -> SpeechLMConfig:
        """The same on a text LLM."""
        return dataclasses.replace(self, backbone=backbone)

    def check(self, layout: Layout) -> None:
        """Raises a UserError where the model does not fit the rows of the layout."""
        if not layout.has_text:
            raise UserError(
                f"layout {layout.name} has no Text row, which this model predicts",
                "put Text(...) first in the layout's Par",
            )
        text, *speech = layout.rows
        classes = tuple(row.classes for row in speech)
        if classes != self.codebooks:
            raise UserError(
                f"SpeechLMConfig.codebooks is {self.codebooks}, layout {layout.name} has {classes}",
                "give both the codebook sizes of the speech tokenizer",
            )
        if self.backbone is not None and text.classes > self.backbone.vocab_size:
            raise UserError(
                f"layout {layout.name} has {text.classes} text ids, the backbone "
                f"{self.backbone.vocab_size}",
                "set Text.vocab to that of the text LLM",
            )
        if self.head == "continuous" and len({row.delay for row in speech}) > 1:
            raise UserError(
                f"the continuous head predicts all levels at once, but layout {layout.name} delays "
                f"them by {tuple(row.delay for row in speech)}",
                "give all levels one delay, as in DELAYS = (1, 1, 1, 1), or take token heads",
            )


class Outputs(NamedTuple):
    """Predictions for the column after each of S columns.

    Attributes:
      text_logits: [B, S, V].
      speech_logits: per level [B, S, V_k]; their argmax is the code. From the continuous head they
        are distances, not log-probabilities.
      hidden: [B, S, D] after the backbone's final norm.
      latent: of the continuous head, else None.
    """

    text_logits: jax.Array
    speech_logits: tuple[jax.Array, ...]
    hidden: jax.Array
    latent: Latent | None


class Cache(NamedTuple):
    """What decoding keeps of the columns so far.

    Attributes:
      kv: of the backbone.
      words: [B, C, D], the mixture of layers at each column; None if the heads do not read it.
    """

    kv: KVCache
    words: jax.Array | None


class SpeechLM(nnx.Module):
    """Parameters: backbone/..., codes/..., fusion/scalars, heads/...."""

    def __init__(self, config: SpeechLMConfig, rngs: nnx.Rngs):
        if config.backbone is None:
            raise ValueError("backbone must be set before the model is built")
        self.config = config
        width, books = config.backbone.width, config.codebooks
        self.backbone = Backbone(config.backbone, rngs)
        self.codes = CodeEmbedding(books, config.code_width, width, rngs)
        self.fusion = Fusion(config.fusion_init)
        epsilon = config.backbone.norm_eps
        if config.head == "tokens":
            self.heads = TokenHeads(books, width, epsilon, rngs)
        elif config.head == "word_tokens":
            self.heads = WordTokenHeads(books, width, config.backbone.layers, epsilon, rngs)
        else:
            self.heads = LatentHead(books, width, config.latent_width, config.logvar, rngs)

    def __call__(self, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> Outputs:
        """Predicts every next column of packed rows.

        Args:
          batch: "tokens" int [B, R, S] with text in row 0, "positions" int [B, S] from 0 in each
            segment, "segment_ids" int [B, S] with 0 for padding, "origins" int [B, R, S], the
            column of the word whose item each row may begin next (`Layout.origins`).
          key: of dropout, in a training step.
        """
        x = self._embed(batch["tokens"])
        positions, segments = batch["positions"], batch["segment_ids"]
        hidden, mixed, _ = self.backbone.run(x, positions, segments, None, self._mix(), key=key)
        return self._predict(hidden, mixed, batch["origins"])

    def step(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        origins: jax.Array,
        cache: Cache,
        last: jax.Array | None = None,
    ) -> tuple[Outputs, Cache]:
        """Predicts the next column of each of S columns: a prompt, or one column while decoding.

        Args:
          tokens: int [B, R, S].
          positions: int [B, S]; see `Backbone` for rows of unequal length.
          origins: int [B, R, S] as above, as positions; with `last`, of that column: [B, R, 1].
          cache: from `init_cache`, or of the step before.
          last: int [B], the one column of each row to predict from; outputs then have S = 1, and a
            prompt costs no text logits but those.
        """
        x = self._embed(tokens)
        hidden, mixed, kv = self.backbone.run(x, positions, None, cache.kv, self._mix())
        words = cache.words
        if words is not None:
            rows = jnp.arange(len(tokens))[:, None]
            words = words.at[rows, positions].set(mixed, mode="drop")
        if last is not None:
            hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        return self._predict(hidden, words, origins), Cache(kv, words)

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for at most `length` columns."""
        config = self.config.backbone
        kv = init_cache(config, batch, length)
        if self._mix() is None:
            return Cache(kv, None)
        return Cache(kv, jnp.zeros((batch, length, config.width), config.dtype))

    def text_logits(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Logits [B, S, V] of the backbone as a plain text LLM, on the text row alone.

        The reference of the KL loss, when the parameters are those of the frozen LLM; with LoRA,
        they are `without_lora(params)`.
        """
        x = self.backbone.embed(batch["tokens"][:, 0])
        hidden, _ = self.backbone(x, batch["positions"], batch["segment_ids"])
        return self.backbone.logits(hidden)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        return self.fusion(self.backbone.embed(tokens[:, 0]), self.codes(tokens[:, 1:]))

    def _mix(self) -> jax.Array | None:
        return self.heads.shares() if isinstance(self.heads, WordTokenHeads) else None

    def _predict(self, hidden: jax.Array, mixed: jax.Array | None, origins: jax.Array) -> Outputs:
        if mixed is None:
            speech_logits, latent = self.heads(hidden)
        else:
            levels = origins[:, 1:].swapaxes(0, 1)[..., None]
            words = [jnp.take_along_axis(mixed, columns, axis=1) for columns in levels]
            speech_logits, latent = self.heads(hidden, words)
        return Outputs(self.backbone.logits(hidden), speech_logits, hidden, latent)


def trainable(params: Params, mode: Literal["full", "lora", "frozen"]) -> dict[str, Any]:
    """Which parameters the optimizer changes, as a tree of bools like `params`.

    "full": all but the codebooks of the continuous head. "lora": of the backbone, the low-rank
    updates alone; code embeddings, fusion and heads as in "full". "frozen": nothing of it.
    """

    def trains(name: str) -> bool:
        if name.startswith("backbone/") and mode == "frozen":
            return False
        if name.startswith("backbone/") and mode == "lora":
            return name.rpartition("/")[2] in ("lora_a", "lora_b")
        return name != "heads/codebooks"

    return unflatten({name: trains(name) for name in flatten(params)})


def without_lora(params: Params) -> Params:
    """The same parameters with every low-rank update switched off."""
    flat = flatten(params)
    return unflatten({k: v * 0 if k.endswith("/lora_b") else v for k, v in flat.items()})


def init_from_llm(speech_params: Params, llm_params: Params) -> Params:
    """Puts the weights of a text LLM into the backbone; all else stays as initialised.

    Args:
      speech_params: of a `SpeechLM` or `GridLM`, concrete.
      llm_params: of a `Backbone` of the same sizes without LoRA; the vocabulary may be smaller.

    Raises:
      UserError: naming every weight that is missing, unexpected or of another shape.
    """
    own, llm = flatten(speech_params["backbone"]), flatten(llm_params)
    base = [name for name in own if not name.endswith(("/lora_a", "/lora_b"))]
    check_names(
        missing=[name for name in base if name not in llm],
        unexpected=[name for name in llm if name not in own],
        misshapen=[
            f"{name} {tuple(llm[name].shape)}, wanted {tuple(own[name].shape)}"
            for name in base
            if name in llm and not _fits(name, llm[name].shape, own[name].shape)
        ],
    )
    llm = {name: _grown(value, own[name]) for name, value in llm.items()}
    return speech_params | {"backbone": unflatten(own | llm)}


# Axis of the vocabulary in the weights that have one.
_VOCABULARY = {"embedding/embedding": 0, "head/kernel": 1}


def _fits(name: str, llm: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether the shapes are equal, but for ids that the LLM lacks."""
    axis = _VOCABULARY.get(name)
    if axis is None or len(llm) != len(own):
        return llm == own
    return llm[axis] <= own[axis] and llm[1 - axis] == own[1 - axis]


def _grown(llm: jax.Array, own: jax.Array) -> jax.Array:
    """`llm` with its mean for the ids that it lacks: they then disturb its softmax least."""
    for axis, (have, want) in enumerate(zip(llm.shape, own.shape, strict=True)):
        if have < want:
            mean = jnp.repeat(llm.mean(axis, keepdims=True), want - have, axis)
            return jax.device_put(jnp.concatenate([llm, mean], axis), own.sharding)
    return llm


def set_codebooks(speech_params: Params, codebooks: jax.Array) -> Params:
    """Puts the speech tokenizer's code vectors [K, V, L] into the continuous head.

    Raises:
      UserError: the head is not continuous, or of other sizes.
    """
    have = speech_params["heads"].get("codebooks")
    if have is None or have.shape != codebooks.shape:
        wanted = "none (head = 'tokens')" if have is None else tuple(have.shape)
        raise UserError(
            f"the model takes codebooks {wanted}, the speech tokenizer has {codebooks.shape}",
            "set codebooks and latent_width of SpeechLMConfig to those of the tokenizer",
        )
    heads = speech_params["heads"] | {"codebooks": codebooks.astype(have.dtype)}
    return speech_params | {"heads": heads}
