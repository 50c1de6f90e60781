"""Levanter's training step, one for each line read: a turn of benchmarks/train_step.py --levanter.

Runs in an environment of its own, with `marin-levanter` and `gitpython` (pip may not resolve what
the former requires; `uv pip install` does, in seconds). Model and loss are Levanter's, and the
optimizer is optax's; nothing is computed again in the backward pass.

Reads from standard input a line of JSON, {"folder": of the weights as transformers has them,
"batch": .npz, "adamw": {...}}, and says {"loaded": true}. Then for each line it does a step and
writes {"loss": ...}, that before the update.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import equinox as eqx
import haliax as hax
import jax
import numpy as np
import optax
from haliax.state_dict import from_torch_compatible_state_dict
from levanter.layers.attention import AttentionMask
from levanter.layers.rotary import DefaultRotaryEmbeddingsConfig
from levanter.models.llama import LlamaConfig, LlamaLMHeadModel
from levanter.models.lm_model import LmExample
from safetensors.numpy import load_file


def main() -> None:
    job = json.loads(sys.stdin.readline())
    batch = np.load(job["batch"])
    model = load(Path(job["folder"]), batch["tokens"].shape[1])
    example = make_example(model, batch)
    print(json.dumps({"loaded": True}), flush=True)
    settings = job["adamw"]
    adamw = optax.adamw(
        settings["learning_rate"],
        b1=settings["b1"],
        b2=settings["b2"],
        eps=settings["epsilon"],
        weight_decay=settings["weight_decay"],
        mask=lambda params: jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params),
    )
    update = optax.chain(optax.clip_by_global_norm(settings["clip_norm"]), adamw)
    state = update.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit(donate="all-except-first")
    def step(
        example: LmExample, model: LlamaLMHeadModel, state: optax.OptState
    ) -> tuple[jax.Array, LlamaLMHeadModel, optax.OptState]:
        loss, gradients = eqx.filter_value_and_grad(
            lambda model: model.compute_next_token_loss(example).scalar()
        )(model)
        changes, state = update.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return loss, eqx.apply_updates(model, changes), state

    for _ in sys.stdin:
        loss, model, state = step(example, model, state)
        print(json.dumps({"loss": float(jax.block_until_ready(loss))}), flush=True)


def load(folder: Path, columns: int) -> LlamaLMHeadModel:
    """The Llama of a folder that transformers reads, in float32."""
    sizes = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(
        max_seq_len=columns,
        hidden_dim=sizes["hidden_size"],
        intermediate_dim=sizes["intermediate_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        num_kv_heads=sizes["num_key_value_heads"],
        layer_norm_epsilon=sizes["rms_norm_eps"],
        tie_word_embeddings=sizes["tie_word_embeddings"],
        rope=DefaultRotaryEmbeddingsConfig(theta=sizes["rope_theta"]),
        gradient_checkpointing=False,
    )
    vocabulary = hax.Axis("vocab", sizes["vocab_size"])
    empty = eqx.filter_eval_shape(
        LlamaLMHeadModel.init, vocabulary, config, key=jax.random.PRNGKey(0)
    )
    weights = {
        name: weight.astype(np.float32)
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    loaded = from_torch_compatible_state_dict(empty, weights)
    return jax.tree.map(jax.numpy.asarray, loaded)


def make_example(model: LlamaLMHeadModel, batch: dict[str, np.ndarray]) -> LmExample:
    """Rows of ids [B, S] with what train_step.py's batch says of them."""
    rows = hax.Axis("batch", batch["tokens"].shape[0])
    axes = (rows, model.Pos)
    segments = hax.named(batch["segment_ids"], axes)
    return LmExample(
        tokens=hax.named(batch["tokens"], axes),
        loss_weight=hax.named(batch["weights"], axes),
        attn_mask=AttentionMask.causal().with_segment_ids(segments),
    )


def decays(path: tuple) -> bool:
    """Whether weight decay holds for a weight: matrices, not the scales of norms."""
    return not any("norm" in str(part) for part in path)


if __name__ == "__main__":
    main()
