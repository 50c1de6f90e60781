"""Where each array of the shipped models lies on eight devices, on every mesh of gin/parallel.

    python tests/sharding_tables.py

writes the tables of tests/golden/sharding anew; tests/unit/test_sharding_tables.py compares.
"""

from __future__ import annotations

import json

import jax
from flax import nnx

from slm_jax import config
from slm_jax.config import GIN_DIR
from slm_jax.data.registry import MixtureSpec
from slm_jax.data.rows import pack_row, stack
from slm_jax.models.speech_lm import trainable
from slm_jax.nn import tree
from slm_jax.paths import REPO
from slm_jax.training import optimizer, partitioning, state
from slm_jax.training.job import TrainJob

GOLDEN = REPO / "tests" / "golden" / "sharding"
DEVICES, ROWS, COLUMNS = 8, 8, 2048
MESHES = {
    path.stem: config.load([path], root="Parallel")
    for path in sorted((GIN_DIR / "parallel").glob("*.gin"))
}
MODELS = sorted(path.stem for path in (GIN_DIR / "models").glob("*.gin"))
# One of each kind of trunk, embedding and head, at its published size.
SYSTEMS = ("csm", "kimi_audio", "llama_omni", "mini_omni", "moshi", "musicgen", "valle_nar")
MAIN = "taste_pretrain"
NAMES = (MAIN, *(f"taste_{model}" for model in MODELS), *SYSTEMS)


def job_of(name: str) -> TrainJob:
    """The main job as it is shipped, the main job on all of a text LLM, or a system."""
    if name in SYSTEMS:
        system = config.load([f"systems/{name}.gin"], root="System")
        return TrainJob(name, system, MixtureSpec((("none", 1.0),)))
    if name == MAIN:
        files, lora = [f"{MAIN}.gin", "models/smollm2_135m.gin"], "%LORA_RANK"
        return config.load(files, [f"BackboneConfig.lora_rank={lora}"])
    return config.load([f"{MAIN}.gin", f"models/{name.removeprefix('taste_')}.gin"])


def table(name: str) -> dict[str, str]:
    """Path of an array -> its dtype and shape, and its place on each mesh that divides it."""
    job = job_of(name)
    module = nnx.eval_shape(lambda: job.system.build(nnx.Rngs(0)))
    batch = stack([pack_row(job.system.layout, COLUMNS, (), None)] * ROWS)
    found: dict[str, list[str]] = {}
    for mesh_name, parallel in MESHES.items():
        mesh = partitioning.abstract_mesh(parallel, DEVICES)
        params = state.skeleton_of(module, parallel.rules, mesh).params
        moves = tree.flatten(trainable(params, job.trains))
        moving = optimizer.moving(job.optimizer, (path for path, on in moves.items() if on))
        now = state.abstract_state(params, optimizer.make(job.optimizer, job.steps), moving)
        rows = {
            leaf: jax.ShapeDtypeStruct(batch[leaf].shape, batch[leaf].dtype, sharding=where)
            for leaf, where in partitioning.batch_shardings(batch, mesh).items()
        }
        for keys, leaf in jax.tree_util.tree_leaves_with_path(now | {"batch": rows}):
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            places = found.setdefault(path, [f"{leaf.dtype.name}{list(leaf.shape)}"])
            axes = ["+".join(partitioning.placement.axes(axis)) for axis in leaf.sharding.spec]
            if any(axes):
                places.append(f"{mesh_name}: {' '.join(axis or '.' for axis in axes)}")
    lines = {path: "; ".join(places) for path, places in found.items()}
    return dict(sorted(beside_weights(lines).items()))


def beside_weights(lines: dict[str, str]) -> dict[str, str]:
    """One line for the slots of an optimizer that all lie where their parameters do."""
    weights = {path.removeprefix("params/"): line for path, line in lines.items()}
    kept, slots = {}, {}
    for path, line in lines.items():
        top, *rest = path.split("/")
        tails = ["/".join(rest[start:]) for start in range(len(rest))]
        weight = next((tail for tail in tails if f"params/{tail}" in lines), None)
        if top == "opt" and weight and weights[weight] == line:
            slots.setdefault(path.removesuffix(weight), []).append(weight)
        else:
            kept[path] = line
    return kept | {f"{slot}*": f"as {len(of)} of params" for slot, of in slots.items()}


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        text = json.dumps(table(name), indent=0)
        (GOLDEN / f"{name}.json").write_text(text + "\n", encoding="utf-8")
