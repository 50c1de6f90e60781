"""The weights that a run begins with: those of the text LLM, and random numbers for the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slm_jax.errors import UserError
from slm_jax.interop.llm import load_llm
from slm_jax.models.speech_lm import init_from_llm, set_codebooks
from slm_jax.nn import tree
from slm_jax.training import state
from slm_jax.training.setup import Program, is_lora


def initial(program: Program, llm: Path | None, codebooks: np.ndarray | None) -> state.State:
    """The state at step 0.

    Args:
      program: the run.
      llm: where the text LLM lies; None for random numbers everywhere.
      codebooks: the speech tokenizer's code vectors [K, V, L], for the continuous head.
    """
    partial = abstract = program.state["params"]
    if llm is not None:
        partial = init_from_llm(partial, _load(llm, abstract))
    if codebooks is not None:
        held = set_codebooks(partial, codebooks)["heads"]["codebooks"]
        leaf = abstract["heads"]["codebooks"]
        placed = state.place(np.asarray(held), leaf.sharding, leaf.dtype)
        partial = partial | {"heads": partial["heads"] | {"codebooks": placed}}
    params = state.initial_params(program.build, partial)
    return state.initial_state(params, program.update, program.moving, program.state)


def reference(program: Program, llm: Path | None) -> tree.Params:
    """The KL's frozen LLM, where it needs weights of its own (`Program.reference`).

    Raises:
      UserError: it does, and there is no text LLM.
    """
    if not program.reference:
        return {}
    if llm is None:
        raise UserError(
            "LossWeights.kl compares with the text LLM, but the job starts from none",
            "Set TrainJob.llm = @Llm(), or LossWeights.kl = 0.0.",
        )
    return {"backbone": _load(llm, program.state["params"])}


def _load(llm: Path, abstract: tree.Params) -> tree.Params:
    flat = tree.flatten(abstract["backbone"])
    placed = {path: leaf.sharding for path, leaf in flat.items() if not is_lora(path)}
    return load_llm(llm, tree.unflatten(placed))[1]
