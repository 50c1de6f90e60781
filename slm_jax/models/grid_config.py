"""What a model over a layout's grid is made of."""

from __future__ import annotations

import dataclasses
from typing import Literal

from slm_jax.errors import UserError
from slm_jax.layouts import Layout, Nar
from slm_jax.layouts.operators import AnyStream
from slm_jax.models.backbone import BackboneConfig
from slm_jax.models.continuous import ContinuousConfig
from slm_jax.models.depth import DepthConfig
from slm_jax.models.grid_embedding import BACKBONE, EmbeddingConfig
from slm_jax.models.second import SecondConfig


@dataclasses.dataclass(frozen=True)
class BranchConfig:
    """Layers of their own for some rows, on the state after an inner block (Kimi-Audio).

    Attributes:
      tap: the block whose output goes in; 0 is the first.
      layers: blocks like the backbone's.
      rows: of the layout, predicted from them.
    """

    tap: int
    layers: int
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class GridLMConfig:
    """A model that reads and predicts all rows of a layout (`GridLM`).

    Attributes:
      backbone: None for that of the text LLM which the run starts from.
      embedding: of columns.
      prefix: whether the columns of the stream that the layout begins with, which is only read,
        see each other both ways (VALL-E's phones).
      depth: what predicts the rows of a column one after the other; None for one softmax a row, all
        in parallel. Labels that nothing reads (`States`) are left to the backbone.
      depth_from: predicted rows before this one are predicted from the backbone all the same, and
        known to the depth transformer (Moshi's text, CSM's first level).
      depth_share: share of the columns that the depth transformer is trained on, those with targets
        in its rows first (CSM: 1/16).
      branch: layers of their own for some rows.
      second: a second transformer, which has all rows; the backbone then has the text of
        `Layout.upstream`.
      continuous: head of a predicted row of vectors.
      normalise: what a loss is divided by. "tokens": all targets together, by weight. "heads": the
        same within each head, and the heads' means are summed (Moshi's text and audio; CSM's first
        level and the finer ones). "rows": the mean of the rows' means (MusicGen, SLAM-Omni).
    """

    backbone: BackboneConfig | None = None
    embedding: EmbeddingConfig = EmbeddingConfig()
    prefix: bool = False
    depth: DepthConfig | None = None
    depth_from: int = 1
    depth_share: float = 1.0
    branch: BranchConfig | None = None
    second: SecondConfig | None = None
    continuous: ContinuousConfig | None = None
    normalise: Literal["tokens", "heads", "rows"] = "tokens"

    def __post_init__(self) -> None:
        if not 0 < self.depth_share <= 1:
            raise ValueError("depth_share must lie in (0, 1]")
        if self.depth_from < 0:
            raise ValueError("depth_from must not be negative")
        if self.second is not None and self.branch is not None:
            raise ValueError("branch taps the backbone, which reads no grid beside second")

    def check(self, layout: Layout) -> None:
        """Raises a UserError where the model does not fit the rows of the layout."""
        problem = self._misfit(layout)
        if problem:
            raise UserError(
                f"GridLMConfig does not fit layout {layout.name}: {problem[0]}", problem[1]
            )

    def _misfit(self, layout: Layout) -> tuple[str, str] | None:
        rows, vectors = layout.rows, layout.vector_row
        if layout.has_text:
            return "its Text row makes words the clock", "take SpeechLMConfig, or Stream for Text"
        try:
            tables = self.embedding.of(len(rows))
        except ValueError as error:
            return str(error), "give EmbeddingConfig.tables one number a row, or leave it empty"
        if (layout.upstream is None) != (self.second is None):
            return (
                "a second transformer needs the layout of the text that the first one reads",
                "set both Layout.upstream and GridLMConfig.second, or neither",
            )
        if (vectors is not None and vectors.predicted) != bool(self.continuous):
            return (
                "a predicted row of vectors needs a continuous head, and only that",
                "set both Vectors.predicted and GridLMConfig.continuous, or neither",
            )
        if self.continuous and self.continuous.width != vectors.width:
            return (
                f"its vectors are {vectors.width} wide, the head {self.continuous.width}",
                "set ContinuousConfig.width to Vectors.width",
            )
        if self.branch and not set(self.branch.rows) <= set(predicted(layout)):
            return f"branch has rows {self.branch.rows}", f"predicted are {predicted(layout)}"
        if self.depth and not 0 <= self.depth_from < len(chained(layout)):
            return (
                f"depth_from is {self.depth_from} of {len(chained(layout))} predicted rows",
                "leave at least one row to the depth transformer",
            )
        if self.prefix and not self._has_prefix(layout):
            return (
                "prefix needs a layout that begins with a stream which is only read, and one trunk",
                "set Layout.initial = False and put the stream first, or leave prefix out",
            )
        shared = [row.vocab for row, table in zip(rows, tables, strict=True) if table == BACKBONE]
        known = self.backbone and self.backbone.vocab_size
        if known and shared and max(shared) > known:
            return (
                f"its ids go up to {max(shared)}, the backbone's table has {known}",
                "set BackboneConfig.vocab_size to the rows that share it",
            )
        if self.second and self.backbone and BACKBONE in tables:
            width = self.second.table_width
            if width != self.backbone.width:
                return (
                    f"tables of the second transformer are {width} wide, the backbone's is "
                    f"{self.backbone.width}",
                    "set SecondConfig.width to the backbone's, or give the row a table of its own",
                )
        return None

    def _has_prefix(self, layout: Layout) -> bool:
        first = layout.of
        while first.inside:
            first = first.inside[0]
        read = isinstance(first, AnyStream) and not first.predicted and not layout.initial
        return read and not (self.second or self.branch or layout.holds(Nar))

    def with_backbone(self, backbone: BackboneConfig, layout: Layout) -> GridLMConfig:
        """The same on a text LLM, whose table grows where the layout has more ids."""
        tables = self.embedding.of(len(layout.rows))
        pairs = zip(layout.rows, tables, strict=True)
        most = max([backbone.vocab_size, *(row.vocab for row, t in pairs if t == BACKBONE)])
        return dataclasses.replace(self, backbone=dataclasses.replace(backbone, vocab_size=most))

    @property
    def freezes(self) -> bool:
        """Whether the text LLM is held still: nothing is asked of it, and nothing reaches it."""
        return bool(self.second and self.second.detach and not self.second.text_weight)

    def depth_rows(self, layout: Layout) -> tuple[int, ...]:
        """Rows that the depth transformer predicts."""
        return chained(layout)[self.depth_from :] if self.depth else ()

    def groups(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        """The rows of each mean that `normalise` adds up: name -> rows."""
        rows, depth = predicted(layout), self.depth_rows(layout)
        if self.normalise == "rows":
            return {layout.rows[row].name: (row,) for row in rows}
        heads = {"backbone": tuple(row for row in rows if row not in depth), "depth": depth}
        if self.normalise == "heads":
            return {name: rows for name, rows in heads.items() if rows}
        return {"all": rows}

    def coefficients(self, layout: Layout) -> dict[str, float]:
        """What the mean of each loss counts in the objective."""
        groups = self.groups(layout)
        share = 1 / len(groups) if self.normalise == "rows" else 1.0
        found = dict.fromkeys(groups, share)
        if self.continuous:
            found["vectors"] = 1.0
        if self.second and self.second.text_weight:
            found["upstream"] = self.second.text_weight
        return found


def predicted(layout: Layout) -> tuple[int, ...]:
    """Rows with a head: those that a target may stand in."""
    return tuple(r for r, row in enumerate(layout.rows) if row.predicted and row.classes)


def chained(layout: Layout) -> tuple[int, ...]:
    """Those of them that a depth transformer may know or predict: all but labels."""
    return tuple(row for row in predicted(layout) if layout.rows[row].level >= 0)
