"""The training loop, top to bottom: mesh, data, model, state, step, and then the steps.

A run directory holds checkpoints/, config.gin (the resolved job), metrics.jsonl and tensorboard/.
The same command on the same directory continues from the newest checkpoint. Batch s is a function
of (seed, s), so that is all there is to continue from.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from slm_jax import config
from slm_jax.data.loader import Loader
from slm_jax.data.registry import DatasetSpec
from slm_jax.errors import UserError
from slm_jax.interop.llm import load_llm
from slm_jax.models.speech_lm import SpeechLMConfig, init_from_llm, set_codebooks, trainable
from slm_jax.nn import tree
from slm_jax.streams import fingerprint
from slm_jax.training import flops, metrics, objective, optimizer, partitioning, state, step
from slm_jax.training.checkpoint import Store
from slm_jax.training.distributed import Preemption, is_main
from slm_jax.training.job import TrainJob
from slm_jax.training.progress import ProgressLine


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `train` returns.

    Attributes:
      job: with the backbone's sizes filled in.
      graphdef, params: the model, `tree.merge(graphdef, params)`.
      step: updates done, by this call and those before.
      trained: updates done by this call; 0 for a run that was complete.
    """

    job: TrainJob
    graphdef: nnx.GraphDef
    params: tree.Params
    step: int
    trained: int

    @property
    def finished(self) -> bool:
        """False after a SIGTERM."""
        return self.step >= self.job.steps


def train(job: TrainJob, llm: Path | None = None, codebooks: np.ndarray | None = None) -> Outcome:
    """Runs or continues `job`.

    Args:
      job: what to do.
      llm: where the text LLM of `job.llm` lies.
      codebooks: the speech tokenizer's code vectors [K, V, L], for the continuous head.

    Raises:
      UserError: data or a checkpoint that do not fit the job, a full disk, a loss that is not
        finite. The checkpoints written before stay.
    """
    goodput = metrics.Goodput()
    job = job.resolve(llm)
    run_dir = job.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)

    # ---- Mesh -----------------------------------------------------------------------------------
    mesh = _mesh(job)
    rows = partitioning.local_rows(mesh, job.batch_size)
    by_rows, whole = partitioning.batch_sharding(mesh), partitioning.replicated(mesh)

    with (
        jax.set_mesh(mesh),
        Preemption() as preemption,
        Store(run_dir, job.checkpoints) as store,
    ):
        # ---- Data -------------------------------------------------------------------------------
        with goodput.spend("start"):
            about = {"config": config.dump(job)} | _provenance(job)
            loader, held_out = _loader(job, "train"), _loader(job, "validation")

        # ---- Model ------------------------------------------------------------------------------
        def build() -> nnx.Module:
            return job.system.build(nnx.Rngs(job.seed))

        graphdef, abstract_params = state.skeleton(build, job.parallel.rules, mesh)
        moves = tree.flatten(trainable(abstract_params, job.trains))
        moving = frozenset(path for path, flag in moves.items() if flag)
        update = optimizer.make(job.optimizer, job.steps)
        abstract = state.abstract_state(abstract_params, update, moving)

        # ---- State: the newest checkpoint, else the text LLM and random numbers ------------------
        with goodput.spend("start"):
            if store.latest is not None:
                _check_continues(job, about, store)
                now = store.restore(abstract)
            else:
                partial = _imported(abstract_params, llm, codebooks)
                params = state.initial_params(build, partial)
                now = state.initial_state(params, update, moving, abstract)
            start = int(now["step"])
            if is_main():
                (run_dir / "config.gin").write_text(about["config"], encoding="utf-8")
            if start >= job.steps:
                return Outcome(job, graphdef, now["params"], start, 0)
            reference = _reference(job, llm, abstract_params)

        # ---- Step -------------------------------------------------------------------------------
        example = loader.batch(start, rows[:1])
        aim = objective.make(job, graphdef, abstract_params, example)
        run_step = jax.jit(
            step.make_step(*aim[:3], update, moving, job.accumulate),
            in_shardings=(state.shardings(abstract), by_rows, state.shardings(reference)),
            out_shardings=(state.shardings(abstract), whole),
            donate_argnums=0,
        )
        run_evaluation = jax.jit(step.make_evaluation(aim.sums, aim.weights), out_shardings=whole)

        # ---- Steps ------------------------------------------------------------------------------
        batches = loader.iterate(start, job.steps, rows)
        deferred = metrics.Deferred()
        log = metrics.Log(run_dir, start)
        done = start
        with ProgressLine(job.steps, start, quiet=not is_main()) as progress:
            progress.say(_greeting(job, mesh, loader, moving, abstract_params, start))
            watch = _Watch(job, mesh, loader, rows, aim.work, log, progress)

            def evaluate() -> None:
                with goodput.spend("eval"):
                    found: dict[str, Any] = {}
                    for batch in held_out.one_pass(rows):
                        placed = partitioning.put_batch(batch, mesh, job.batch_size)
                        scores = run_evaluation(now["params"], placed, reference)
                        found = metrics.add(found, jax.device_get(scores))
                    watch.evaluated(done, metrics.means(found))

            while done < job.steps:
                with goodput.spend("data"):
                    batch = next(batches)
                    placed = partitioning.put_batch(batch, mesh, job.batch_size)
                first = done == start  # the first call compiles
                with goodput.spend("compile" if first else "step"), jax.transfer_guard("disallow"):
                    now, measured = run_step(now, placed, reference)
                    previous = deferred.push(done + 1, (measured, batch["segment_ids"]))
                    if first:
                        jax.block_until_ready(measured)
                done += 1
                watch.trained(previous)
                stop = preemption.stop_at(done)
                measure = done % job.eval_every == 0 or done == job.steps
                if measure or stop:
                    watch.trained(deferred.flush())
                if measure and not stop:
                    evaluate()
                with goodput.spend("save"):
                    store.save(now, done, about, force=stop or done == job.steps)
                if stop:
                    progress.say(f"stopped by SIGTERM after step {done}, which is saved")
                    break
        with goodput.spend("save"):
            store.wait()
        log.write(done, "time", {}, goodput=goodput.fraction(), **goodput.in_seconds())
        log.close()
    return Outcome(job, graphdef, now["params"], done, done - start)


class _Watch:
    """Looks at each step's metrics: logs, shows, and stops the run at a loss that is no number."""

    def __init__(
        self,
        job: TrainJob,
        mesh: Mesh,
        loader: Loader,
        rows: np.ndarray,
        work: Callable[[np.ndarray], float],
        log: metrics.Log,
        progress: ProgressLine,
    ):
        self.job, self.loader, self.rows, self.work = job, loader, rows, work
        self.log, self.progress = log, progress
        self.devices = mesh.size
        self.peak = flops.peak(mesh.devices.flat[0].device_kind)
        self.rates = np.asarray(optimizer.schedule(job.optimizer, job.steps)(np.arange(job.steps)))
        self.began = time.monotonic()

    def trained(self, entry: tuple[int, Any] | None) -> None:
        """A step's metrics, on the host."""
        if entry is None:
            return
        at, (measured, segment_ids) = entry
        losses = metrics.means(measured["losses"])
        if not measured["finite"]:
            self._refuse(at, losses)
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        share = self.job.batch_size / len(self.rows)  # of the batch that other processes hold
        rate = float((segment_ids > 0).sum() * share / seconds)
        due = at % self.job.log_every == 0 or at == self.job.steps
        if due:
            work = self.work(segment_ids) * share
            numbers = {
                "tokens_per_second": rate,
                "seconds": seconds,
                "tflops_per_device": work / seconds / self.devices / 1e12,
                "grad_norm": float(measured["grad_norm"]),
                "learning_rate": float(self.rates[at - 1]),
            }
            if self.peak:
                numbers["mfu"] = work / seconds / self.devices / self.peak
            self.log.write(at, "train", losses | {"total": float(measured["objective"])}, **numbers)
        self.progress.update(at, losses, rate, due)

    def evaluated(self, at: int, losses: Mapping[str, float]) -> None:
        """Means over the held-out data."""
        self.log.write(at, "eval", losses)
        named = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.progress.say(f"held out after step {at}: {named}")
        self.began = time.monotonic()

    def _refuse(self, at: int, losses: Mapping[str, float]) -> None:
        path = self.job.run_dir / f"bad_batch_{at}_of_process_{jax.process_index()}.npz"
        np.savez_compressed(path, **self.loader.batch(at - 1, self.rows))
        named = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        raise UserError(
            f"the loss or its gradient is not finite at step {at} ({named}); batch saved in {path}",
            "lower Optimizer.learning_rate or Optimizer.clip_norm and run the same command again: "
            "it continues from the newest checkpoint.",
        )


def _mesh(job: TrainJob) -> Mesh:
    try:
        mesh = partitioning.make_mesh(job.parallel)
    except ValueError as error:
        raise UserError(
            str(error), "Set Parallel.data, fsdp and tensor so that their product is that number."
        ) from None
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * job.accumulate
    if job.batch_size % shares:
        raise UserError(
            f"batch_size {job.batch_size} does not divide over data x fsdp x accumulate = {shares}",
            f"make TrainJob.batch_size a multiple of {shares}.",
        )
    return mesh


def _loader(job: TrainJob, split: str) -> Loader:
    return Loader(job.data, job.system.layout, job.batch_size, job.seq_len, job.seed, split=split)


def _provenance(job: TrainJob) -> dict[str, Any]:
    """What the run's data are, to be held against those of a later continuation or decoding."""
    streams: dict[str, str] = {}
    datasets = []
    for spec in job.data.datasets:
        opened = spec.open()
        families = [family for family in job.system.layout.families if family in spec.families]
        if len(families) == len(job.system.layout.families):
            job.system.layout.check(opened.specs)
        streams |= {family: opened.specs[family].fingerprint for family in families}
        datasets.append(_content(spec, families))
    return {"streams": streams, "data": fingerprint(datasets)}


def _content(spec: DatasetSpec, families: list[str]) -> str:
    return spec.open().split("train", families).fingerprint


def _check_continues(job: TrainJob, about: Mapping[str, Any], store: Store) -> None:
    before = store.about(store.latest)
    job.check_continues(config.loads(before["config"], name=str(job.run_dir / "config.gin")))
    if before["data"] != about["data"]:
        raise UserError(
            f"the datasets of the run in {job.run_dir} have been made again since it began",
            "Train under another name, or put the datasets back that it was begun with.",
        )


def _imported(abstract: tree.Params, llm: Path | None, codebooks: np.ndarray | None) -> tree.Params:
    """`abstract` with the weights that exist already in the place of their shapes."""
    partial = abstract
    if llm is not None:
        partial = init_from_llm(partial, _load_llm(llm, abstract))
    if codebooks is not None:
        held = set_codebooks(partial, codebooks)["heads"]["codebooks"]
        leaf = abstract["heads"]["codebooks"]
        placed = state.place(np.asarray(held), leaf.sharding, leaf.dtype)
        partial = partial | {"heads": partial["heads"] | {"codebooks": placed}}
    return partial


def _load_llm(llm: Path, abstract: tree.Params) -> tree.Params:
    flat = tree.flatten(abstract["backbone"])
    placed = {path: leaf.sharding for path, leaf in flat.items() if not _is_lora(path)}
    return load_llm(llm, tree.unflatten(placed))[1]


def _is_lora(path: str) -> bool:
    return path.rpartition("/")[2] in ("lora_a", "lora_b")


def _reference(job: TrainJob, llm: Path | None, abstract: tree.Params) -> tree.Params:
    """Parameters of the KL's frozen LLM; none where LoRA leaves the model's own as they were."""
    compares = isinstance(job.system.model, SpeechLMConfig) and job.losses.kl
    if not compares or job.trains == "lora":
        return {}
    if llm is None:
        raise UserError(
            "LossWeights.kl compares with the text LLM, but the job starts from none",
            "Set TrainJob.llm = @Llm(), or LossWeights.kl = 0.0.",
        )
    return {"backbone": _load_llm(llm, abstract)}


def _greeting(
    job: TrainJob,
    mesh: Mesh,
    loader: Loader,
    moving: frozenset[str],
    abstract: tree.Params,
    start: int,
) -> str:
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in tree.flatten(abstract).items()}
    trained = sum(size for path, size in sizes.items() if path in moving)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = [
        f"run {job.run_dir}: step {start} of {job.steps}" + (", continued" if start else ""),
        f"model: {sum(sizes.values()) / 1e6:.1f}M parameters, {trained / 1e6:.1f}M trained; "
        f"mesh: {shape} on {mesh.devices.flat[0].device_kind}",
    ]
    for name, part in loader.summary().items():
        lines.append(
            f"data: {name}, {part['rate']:.0%} of the rows: {part['records']} records in "
            f"{part['rows']} rows, {part['fill']:.0%} filled, {part['skipped']} too long"
        )
    return "\n".join(lines)
