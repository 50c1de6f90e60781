"""A plan as a table for people."""

from __future__ import annotations

import math

from slm_jax.layouts import Layout
from slm_jax.planning.accelerators import Accelerator
from slm_jax.planning.plan import Assumed, Plan

_UNITS = ("", " thousand", " million", " billion", " trillion")


def render(
    plan: Plan, layout: Layout, accelerator: Accelerator, assumed: Assumed, budget: float
) -> str:
    """The table.

    Args:
      plan: to be shown.
      layout, accelerator, assumed: what it was made for.
      budget: text ids of a text-scale corpus.
    """
    pace, rates, memory, chip = plan.pace, plan.rates, plan.memory, accelerator.chip
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    parts = {
        "audio": [
            ("hours", number(plan.hours)),
            ("words", f"{pace.words:.0f} a minute, {pace.ids:.2f} text ids a word"),
            ("text ids", number(pace.text_ids(plan.hours))),
            (f"{number(budget)} text ids", f"{number(pace.years(budget))} years of such speech"),
        ],
        f"layout {layout.name}": [
            ("columns", f"{rates.columns:.2f} a second: what the backbone reads"),
            (
                "predicted ids",
                f"{rates.targets:.1f} a second, {rates.speech_targets:.1f} of speech",
            ),
            ("speech", f"{rates.speech_bits:.0f} bits a second"),
            ("columns in all", number(plan.columns)),
        ],
        "training": [
            ("parameters", f"{number(plan.parameters)}, {number(plan.trained)} trained"),
            ("batch", f"{plan.rows} rows, {plan.fill:.0%} filled, {plan.skipped:.0%} too long"),
            ("steps", f"{plan.steps:,} for {assumed.epochs:g} epochs"),
            ("operations", f"{plan.step_work:.3g} a step, {plan.work:.3g} in all"),
        ],
        f"memory of one of {accelerator.chips} {chip.name}": [
            *((name, gigabytes(size)) for name, size in memory._asdict().items()),
            ("in all", f"{gigabytes(memory.total)} of {gigabytes(chip.memory)}"),
            ("mesh", mesh),
        ],
        "time and cost": [
            ("a step", f"{plan.step_seconds:.3g} s at {assumed.mfu:.0%} MFU"),
            ("days", f"{plan.days:.3g}"),
            ("cost", f"${plan.cost:,.0f} at ${plan.price:.2f} a chip and hour"),
            ("price", chip.source if assumed.price is None else "of --price"),
        ],
    }
    width = max(len(name) for rows in parts.values() for name, _ in rows)
    lines = []
    for title, rows in parts.items():
        lines += [title, *(f"  {name:{width}}  {value}" for name, value in rows)]
    if memory.total > chip.memory:
        lines.append(
            "It does not fit: divide more (gin/parallel/), or set Llm.remat to dots or full."
        )
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits and a unit."""
    place = min(len(_UNITS) - 1, max(0, int(math.log10(max(value, 1)) // 3)))
    return f"{value / 1000**place:.3g}{_UNITS[place]}"


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB"
