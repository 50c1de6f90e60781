"""Our training step beside that of PyTorch + transformers: same weights, batch, dtype, optimizer.

    python benchmarks/train_step.py                    # SmolLM2-135M's sizes, on this CPU
    python benchmarks/train_step.py --rows 8 --columns 2048 --dtype bfloat16    # on a GPU
    python benchmarks/train_step.py --sizes gin/models/llama32_1b.gin ...
    python benchmarks/train_step.py --levanter PYTHON    # and Levanter's; see levanter_step.py

A step is forward, loss, backward, clipping and AdamW, of all weights. Ours and theirs take turns,
so that whatever else the machine does slows both; a ratio is that of neighbours in time. Both have
as many threads as this process has cores. Before anything is timed, both train the same steps from
the same weights, and their losses must agree. On a GPU theirs is compiled (torch.compile) and runs
under autocast where the dtype is bfloat16; weights, moments and reductions are float32 in both.

Rows are full causal ones, and with --packed of several records each, which attend to themselves:
theirs is told by a mask, as its SDPA knows no segments. Operations are counted as in
slm_jax/training/flops.py: causal, packed, what the model needs and nothing more.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx
from tokenizer_speed import machine

from slm_jax import config
from slm_jax.interop.export import export_llm
from slm_jax.models.backbone import Backbone, BackboneConfig
from slm_jax.nn import tree
from slm_jax.nn.losses import cross_entropy
from slm_jax.training import flops, optimizer, step
from slm_jax.training.optimizer import Optimizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHECKED = 3  # steps whose losses must agree
ADAMW = Optimizer(
    learning_rate=1e-4, schedule="wsd", warmup_steps=0, decay_share=0.0, weight_decay=0.01
)
Batch = dict[str, np.ndarray]
Step = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="models/smollm2_135m.gin", help="of a BackboneConfig")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--packed", action="store_true", help="records of 10 to 120 columns")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", default="none", help="as BackboneConfig.remat")
    parser.add_argument("--levanter", metavar="PYTHON", help="of an environment with Levanter")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))  # as many as XLA takes
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if args.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    sizes = config.load([args.sizes], root="BackboneConfig", part=True)
    sizes = dataclasses.replace(sizes, dtype=args.dtype, remat=args.remat)
    batch = make_batch(sizes, args.rows, args.columns, args.packed)
    lengths = flops.segment_lengths(batch["segment_ids"])
    work = flops.step(sizes, lengths)
    print(f"{machine()}; {threads} threads")
    print(
        f"{args.sizes}, {args.dtype}, {args.rows} x {args.columns} columns in {len(lengths)} "
        f"segments, {work / 1e12:.3f} T operations a step"
    )
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "llm"
        steps = {"ours": make_ours(sizes, batch, folder)}
        steps["PyTorch"] = make_theirs(folder, batch, args.dtype)
        if args.levanter:
            steps["Levanter"] = make_levanter(args.levanter, folder, batch)
    tolerance = 1e-4 if args.dtype == "float32" else 1e-2
    for at in range(CHECKED):
        found = {name: float(run()) for name, run in steps.items()}
        said = ", ".join(f"{name} {loss:.5f}" for name, loss in found.items())
        print(f"loss before update {at + 1}: {said}", flush=True)
        if np.ptp([*found.values()]) > tolerance * found["PyTorch"]:
            raise SystemExit("they do not train the same model")
    tokens = int(lengths.sum())
    spent = take_turns([*steps.values()], args.repeats)
    peak = flops.peak(jax.devices()[0].device_kind)
    print("\n| step | s, median (least to most) | tokens/s | Tflop/s | MFU |")
    print("|---|---|---|---|---|")
    for name, times in zip(steps, spent.T, strict=True):
        middle = np.median(times)
        share = f"{work / middle / peak:.1%}" if peak else ""
        print(
            f"| {name} | {middle:.3f} ({times.min():.3f} to {times.max():.3f}) | "
            f"{tokens / middle:.0f} | {work / middle / 1e12:.3f} | {share} |"
        )
    for at, name in [*enumerate(steps)][1:]:
        middle, low, high = np.percentile(spent[:, at] / spent[:, 0], (50, 25, 75))
        least = spent[:, at].min() / spent[:, 0].min()
        print(f"\nours is {middle:.2f} times as fast as {name} (quartiles {low:.2f} to {high:.2f}; "
              f"by the least times {least:.2f})")  # fmt: skip


def make_batch(sizes: BackboneConfig, rows: int, columns: int, packed: bool) -> Batch:
    """Random ids; every column predicts the next one of its segment."""
    random = np.random.default_rng(0)
    ids = random.integers(0, sizes.vocab_size, (rows, columns), dtype=np.int32)
    segments = np.ones((rows, columns), np.int32)
    for row in segments[: rows * packed]:
        starts = np.cumsum(random.integers(10, 120, columns))
        row[:] = 1 + np.searchsorted(starts, np.arange(columns), side="right")
    first = np.diff(segments, axis=1, prepend=0) > 0
    starts = np.maximum.accumulate(np.where(first, np.arange(columns), 0), axis=1)
    last = np.diff(segments, axis=1, append=-1) != 0
    return {
        "tokens": ids,
        "targets": np.roll(ids, -1, axis=1),
        "weights": (~last).astype(np.float32),
        "segment_ids": segments,
        "positions": (np.arange(columns) - starts).astype(np.int32),
    }


def make_ours(sizes: BackboneConfig, batch: Batch, folder: Path) -> Step:
    """Our step, compiled; its weights are left in `folder`."""
    graphdef, abstract = tree.pure_params(nnx.eval_shape(lambda: Backbone(sizes, nnx.Rngs(0))))
    params = jax.jit(lambda: tree.pure_params(Backbone(sizes, nnx.Rngs(0)))[1])()
    export_llm(sizes, params, folder, dtype="float32")
    paths = frozenset(f"backbone/{path}" for path in tree.flatten(abstract))

    def sums(params: tree.Params, reference: tree.Params, rows: Any, key: Any) -> dict[str, Any]:
        model = tree.merge(graphdef, params["backbone"])
        hidden, _ = model(model.embed(rows["tokens"]), rows["positions"], rows["segment_ids"])
        nats = cross_entropy(model.logits(hidden), rows["targets"], rows["weights"])
        return {"text": (nats * rows["weights"]).sum()}

    def weights(rows: Any) -> dict[str, Any]:
        return {"text": rows["weights"].sum()}

    update = optimizer.make(ADAMW, 1000)
    moving = {"backbone": params}
    state = {"params": moving, "opt": jax.jit(update.init)(moving), "step": jnp.int32(0)}
    function = step.make_step(sums, weights, {"text": 1.0}, update, paths)
    placed = jax.device_put(batch)
    clock, used = time.perf_counter(), time.process_time()
    compiled = jax.jit(function, donate_argnums=0).lower(state, placed, {}).compile()
    clock, used = time.perf_counter() - clock, time.process_time() - used
    print(f"ours compiled in {clock:.0f} s, {used:.0f} s of processor time", flush=True)

    def run() -> jax.Array:
        nonlocal state
        state, measured = compiled(state, placed, {})
        return jax.block_until_ready(measured["objective"])

    return run


def make_theirs(folder: Path, batch: Batch, dtype: str) -> Step:
    """The same step in PyTorch."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).to(DEVICE)
    model.train()
    decays = [p for p in model.parameters() if p.ndim > 1]
    stays = [p for p in model.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": decays}, {"params": stays, "weight_decay": 0.0}],
        lr=ADAMW.learning_rate,
        betas=(ADAMW.b1, ADAMW.b2),
        eps=ADAMW.epsilon,
        weight_decay=ADAMW.weight_decay,
        fused=True,
    )
    ids, targets, positions = (
        torch.from_numpy(batch[name]).long().to(DEVICE)
        for name in ("tokens", "targets", "positions")
    )
    targets = targets.where(torch.from_numpy(batch["weights"]).to(DEVICE) > 0, -100).flatten()
    mask = None  # causal
    segments = batch["segment_ids"]
    if segments.max() > 1:
        causal = np.tril(np.ones((segments.shape[1],) * 2, bool))
        mask = (segments[:, None, :, None] == segments[:, None, None, :]) & causal
        mask = torch.from_numpy(mask).to(DEVICE)

    def loss() -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets)

    if DEVICE == "cuda":
        loss = torch.compile(loss)

    def run() -> torch.Tensor:
        adamw.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW.clip_norm)
        adamw.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return value.detach()

    return run


def make_levanter(python: str, folder: Path, batch: Batch) -> Step:
    """The same step in Levanter, in a process of another Python."""
    np.savez(folder / "batch.npz", **batch)
    script = Path(__file__).with_name("levanter_step.py")
    child = subprocess.Popen(
        [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    settings = dataclasses.asdict(ADAMW)
    names = ("learning_rate", "b1", "b2", "epsilon", "weight_decay", "clip_norm")
    job = {"folder": str(folder), "batch": str(folder / "batch.npz")}

    def ask(line: str) -> dict[str, Any]:
        child.stdin.write(line + "\n")
        child.stdin.flush()
        if not (answer := child.stdout.readline()):
            raise SystemExit("Levanter's process has ended")
        return json.loads(answer)

    ask(json.dumps(job | {"adamw": {name: settings[name] for name in names}}))
    return lambda: ask("")["loss"]


def take_turns(steps: list[Step], repeats: int) -> np.ndarray:
    """Seconds [repeats, steps]."""
    spent = np.empty((repeats, len(steps)))
    gc.collect()
    for repeat in range(repeats):
        for i in range(len(steps))[:: 1 if repeat % 2 else -1]:
            began = time.perf_counter()
            steps[i]()
            spent[repeat, i] = time.perf_counter() - began
    return spent


if __name__ == "__main__":
    main()
