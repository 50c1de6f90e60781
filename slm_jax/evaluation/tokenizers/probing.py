"""All probes of all coders, beside continuous features and beside hearing nothing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from slm_jax.evaluation.bootstrap import Figure
from slm_jax.evaluation.stages import Stages
from slm_jax.evaluation.tokenizers.coders import Coded, Coder
from slm_jax.evaluation.tokenizers.corpus import Corpus
from slm_jax.evaluation.tokenizers.probe_models import HEADS, Head
from slm_jax.evaluation.tokenizers.probes import Budget, baseline, probe
from slm_jax.evaluation.tokenizers.tasks import Task, make_tasks
from slm_jax.evaluation.verdicts import Verdicts
from slm_jax.streams import fingerprint

PROTOCOL = (
    "probes-1: networks of width {width} trained on codes alone, with Adam from {rate}, batches of "
    "{batch}, {steps} steps ({spelling_steps} for words), seed {seed}, dropout 0.2, no choice of a "
    "best step. Codes of all levels, embedded from nothing and summed by attention over levels "
    "(DASB's); features standardised. Heads: linear, or BiLSTM of two layers; mean and deviation "
    "over time for a class, CTC over letters, decoded greedily, for words, where an item of fewer "
    "than 50 a second writes several letters or blanks. Trained on train splits, asked about "
    "held-out utterances of up to 8 s: words whole, keywords cut out by the dataset's word times, "
    "the others by the first 3 s. A baseline says the most frequent class or nothing. Intervals: "
    "95 %, bootstrap over examples, which says nothing of other voices or of other seeds."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Probing:
    """What probes are trained on and how.

    Attributes:
      train: utterances to learn from.
      held_out: utterances that they are asked about.
      genders: of speakers by name.
      budget: of each probe.
    """

    train: Corpus
    held_out: Corpus
    genders: Mapping[str, str]
    budget: Budget = Budget()


def run_probes(
    probing: Probing,
    coders: Mapping[str, Coder],
    book: Verdicts,
    known: Callable[[dict[str, Any]], None],
) -> None:
    """Trains and asks every probe that the book does not know.

    Args:
      probing: see there.
      coders: by name.
      book: of probes that were trained before.
      known: is given, whenever there is more of it, {"protocol", "train": {"utterances",
        "minutes"}, "tasks": name -> {"unavailable": why} or {"classes", "note", "examples": [train,
        held-out], "baseline": figures, "systems": coder -> head -> figures}}.
    """
    train, held_out, budget = probing.train, probing.held_out, probing.budget
    tasks = make_tasks(train, held_out, probing.genders)
    open_tasks = {name: task for name, task in tasks.items() if isinstance(task, Task)}
    found: dict[str, Any] = {
        "protocol": PROTOCOL.format(**dataclasses.asdict(budget)),
        "train": {"utterances": len(train.ids), "minutes": train.seconds / 60},
        "tasks": {name: _begin(task) for name, task in tasks.items()},
    }
    identity = fingerprint(found["protocol"], train.fingerprint, held_out.fingerprint)
    stages = Stages(["probe"] * len(coders) * len(open_tasks) * len(HEADS), 1)
    learned = functools.lru_cache(1)(lambda name: _code(name, coders[name], train))
    asked = functools.lru_cache(1)(lambda name: _code(name, coders[name], held_out))

    def ask(name: str, title: str, head: Head) -> dict[str, Any]:
        task, coder = open_tasks[title], coders[name]
        key = fingerprint(identity, coder.identity, head, task)
        return book.ask(
            key, lambda: _json(probe(task, head, coder, learned(name), asked(name), budget))
        )

    for job in itertools.product(coders, open_tasks, HEADS):
        name, title, head = job
        line = f"{name}: probing for {title}, {head}"
        [figures] = stages.map("probe", line, lambda _, job=job: [ask(*job)])
        found["tasks"][title]["systems"].setdefault(name, {})[head] = figures
        known(found)


def _code(name: str, coder: Coder, corpus: Corpus) -> list[Coded | None]:
    stages = Stages(["code"], len(corpus.ids))
    title = f"{name}: coding what probes learn from or are asked about"
    return stages.map("code", title, lambda rows: [coder.encode(corpus.audios[i]) for i in rows])


def _begin(task: Task | str) -> dict[str, Any]:
    if isinstance(task, str):
        return {"unavailable": task}
    return {
        "classes": list(task.classes),
        "note": task.note,
        "examples": [len(task.train), len(task.held_out)],
        "baseline": _json(baseline(task)),
        "systems": {},
    }


def _json(figures: Mapping[str, Figure | None]) -> dict[str, Any]:
    return {name: one.to_json() if one else None for name, one in figures.items()}
