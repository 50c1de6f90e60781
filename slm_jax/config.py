"""Gin files in, frozen dataclasses out; gin reaches no deeper than this.

A gin file binds fields of the dataclasses of CONFIGURABLES. The text is read by gin's own
parser, and evaluated here instead of by gin's global registry, because gin checks no types,
keeps no line numbers after parsing, ignores a binding that nothing uses, and cannot be reset.
So `load` is a pure function of its arguments, and each mistake is one UserError that names the
file, the line and the nearest valid name.

Supported: `Class.field = value`, `scope/Class.field = value`, macros (`NAME = value`, `%NAME`),
references (`@Class()`, `@scope/Class()`), `include "other.gin"`, blocks. A field that is itself
a configurable dataclass needs no reference: binding its fields is enough.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

from slm_jax.config_dump import default, dump, fields
from slm_jax.config_types import checked
from slm_jax.errors import UserError
from slm_jax.paths import REPO

GIN_DIR = REPO / "gin"
__all__ = [
    "CONFIGURABLES",
    "GIN_DIR",
    "configurable",
    "dump",
    "find_file",
    "from_flags",
    "load",
    "loads",
]

# The vocabulary of gin files: every class that may be bound, and the module that defines it
# (imported when a file first uses the name).
CONFIGURABLES = {
    "TrainJob": "slm_jax.training.job",
    "Llm": "slm_jax.training.job",
    "Optimizer": "slm_jax.training.optimizer",
    "SkipSpikes": "slm_jax.training.skipstep",
    "Parallel": "slm_jax.training.partitioning",
    "Checkpoints": "slm_jax.training.checkpoint",
    "System": "slm_jax.models.system",
    "SpeechLMConfig": "slm_jax.models.speech_lm",
    "GridLMConfig": "slm_jax.models.grid_config",
    "BranchConfig": "slm_jax.models.grid_config",
    "EmbeddingConfig": "slm_jax.models.grid_embedding",
    "SecondConfig": "slm_jax.models.second",
    "DepthConfig": "slm_jax.nn.depth_config",
    "ContinuousConfig": "slm_jax.models.continuous",
    "CrossDecoderConfig": "slm_jax.nn.cross_decoder_config",
    "Layout": "slm_jax.layouts",
    "Aligned": "slm_jax.layouts",
    "Bistream": "slm_jax.layouts",
    "Copies": "slm_jax.layouts",
    "Ctc": "slm_jax.layouts",
    "Delay": "slm_jax.layouts",
    "Flat": "slm_jax.layouts",
    "Group": "slm_jax.layouts",
    "Inter": "slm_jax.layouts",
    "Machine": "slm_jax.layouts",
    "Masked": "slm_jax.layouts",
    "Merge": "slm_jax.layouts",
    "Nar": "slm_jax.layouts",
    "Par": "slm_jax.layouts",
    "Seq": "slm_jax.layouts",
    "Spans": "slm_jax.layouts",
    "States": "slm_jax.layouts",
    "Stream": "slm_jax.layouts",
    "Stretch": "slm_jax.layouts",
    "Text": "slm_jax.layouts",
    "Thinned": "slm_jax.layouts",
    "Token": "slm_jax.layouts",
    "Typed": "slm_jax.layouts",
    "Vectors": "slm_jax.layouts",
    "LossWeights": "slm_jax.training.losses",
    "BackboneConfig": "slm_jax.nn.backbone_config",
    "RopeScaling": "slm_jax.nn.rope",
    "MixtureSpec": "slm_jax.data.registry",
    "Reading": "slm_jax.data.ahead",
    "DecodeJob": "slm_jax.decoding.job",
    "CompareJob": "slm_jax.evaluation.compare.job",
    "DecodeLimits": "slm_jax.decoding.engine",
    "Sampling": "slm_jax.decoding.samplers",
    "TasteJob": "slm_jax.training.taste_job",
    "TasteTraining": "slm_jax.training.taste_stages",
    "TasteConfig": "slm_jax.tokenizers.taste_network",
    "TasteDecoderConfig": "slm_jax.tokenizers.taste_decoder",
    "VocoderConfig": "slm_jax.tokenizers.vocoder",
    "VocoderTraining": "slm_jax.training.vocoder_job",
    "Adversary": "slm_jax.training.adversarial",
    "CodecJob": "slm_jax.training.codec_job",
    "CodecTraining": "slm_jax.training.codec_job",
    "Teacher": "slm_jax.training.codec_teacher",
    "FrameCodecConfig": "slm_jax.tokenizers.codecs.frame_codec",
    "UnitVocoderJob": "slm_jax.training.unit_vocoder_job",
    "UnitVocoderTraining": "slm_jax.training.unit_vocoder_job",
    "UnitVocoderConfig": "slm_jax.tokenizers.unit_vocoder",
    "FlowConfig": "slm_jax.tokenizers.flow_matching",
    "AsrUnitsJob": "slm_jax.training.asr_units_job",
    "AsrUnitsTraining": "slm_jax.training.asr_units_job",
    "AsrUnitsConfig": "slm_jax.tokenizers.asr_units_network",
    "RvqConfig": "slm_jax.nn.quantizers",
    "FsqConfig": "slm_jax.nn.quantizers",
    "FitConfig": "slm_jax.training.fit",
    "MelConfig": "slm_jax.audio.features",
    "DatasetBuildConfig": "data_pipelines.build_config",
    "TextBuildConfig": "data_pipelines.build_config",
}


@dataclasses.dataclass(frozen=True)
class _Macro:
    name: str


@dataclasses.dataclass(frozen=True)
class _Reference:
    scope: str
    name: str
    evaluate: bool


@dataclasses.dataclass(frozen=True)
class _Binding:
    value: Any
    where: str


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return _Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> _Macro:
        return _Macro(macro_name)


def load(
    files: Iterable[str | Path],
    bindings: Iterable[str] = (),
    *,
    root: str = "TrainJob",
    part: bool = False,
) -> Any:
    """Builds the dataclass `root` from gin files and overrides.

    Args:
      files: each found by path or in gin/; later files override earlier ones.
      bindings: "NAME=value" (a macro of the files) or "Class.field=value"; a value that is no
        gin literal is taken as a string.
      root: name of a class in CONFIGURABLES.
      part: whether the files may say more than `root` uses.

    Raises:
      UserError: unknown name, wrong type, value out of range, binding without a use.
    """
    bound = _Bindings()
    for file in files:
        bound.read_file(find_file(file))
    for binding in bindings:
        bound.override(binding)
    return bound.build_root(root, part)


def loads(text: str, *, root: str = "TrainJob", name: str = "config.gin") -> Any:
    """Builds `root` from the text of one gin file, for instance of `dump`."""
    bound = _Bindings()
    bound.read_text(text, name, GIN_DIR)
    return bound.build_root(root)


def from_flags(
    root: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[Any, argparse.Namespace]:
    """Adds --gin_file and --gin.NAME=value to a binary's own flags and reads them all.

    Returns:
      The loaded `root` and the binary's own flags.

    Raises:
      UserError: an unknown flag, or whatever `load` finds wrong.
    """
    parser.allow_abbrev = False
    parser.add_argument("--gin_file", action="append", required=True, metavar="FILE",
                        help="a gin file, by path or name in gin/; several add up")  # fmt: skip
    parser.epilog = "--gin.NAME=value overrides a macro, --gin.Class.field=value a field."
    args, rest = parser.parse_known_args(argv)
    known = [option for action in parser._actions for option in action.option_strings]
    for flag in rest:
        if not flag.startswith("--gin.") or "=" not in flag:
            remedy = f"Did you mean {_nearest(flag.split('=')[0], known)}? Overrides are written "
            raise UserError(f"unknown flag {flag}", remedy + "--gin.NAME=value.")
    job = load(args.gin_file, [flag.removeprefix("--gin.") for flag in rest], root=root)
    return job, args


def find_file(name: str | Path, base: Path | None = None) -> Path:
    """The gin file `name`: relative to `base` (the including file), by path, or in gin/."""
    candidates = [*([base / name] if base else []), Path(name), GIN_DIR / name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = [path.relative_to(GIN_DIR).as_posix() for path in GIN_DIR.rglob("*.gin")]
    raise UserError(
        f"gin file {name} found neither by path nor in {GIN_DIR}",
        f"Nearest: {_nearest(str(name), shipped)}. Shipped: {', '.join(sorted(shipped))}.",
    )


def configurable(name: str) -> type:
    """The dataclass that gin files call `name`."""
    return getattr(importlib.import_module(CONFIGURABLES[name]), name)


class _Bindings:
    """What the files and overrides say, before any class is built."""

    def __init__(self) -> None:
        self.fields: dict[tuple[str, str, str], _Binding] = {}  # (scope, class, field)
        self.macros: dict[str, _Binding] = {}
        self.used_fields: set[tuple[str, str, str]] = set()
        self.used_macros: set[str] = set()
        self.replaced: list[Any] = []  # values that a later binding took the place of

    # Reading.

    def read_file(self, path: Path) -> None:
        self.read_text(path.read_text(encoding="utf-8"), str(path), path.parent)

    def read_text(self, text: str, name: str, folder: Path) -> None:
        try:
            for statement in config_parser.ConfigParser(text, _Delegate()):
                where = f"{name}, line {statement.location.line_num}"
                if isinstance(statement, config_parser.IncludeStatement):
                    self.read_file(find_file(statement.filename, folder))
                elif isinstance(statement, config_parser.ImportStatement):
                    raise UserError(
                        f"{where}: gin files import nothing",
                        "Remove the line; classes are found by name.",
                    )
                elif isinstance(statement, config_parser.BindingStatement):
                    key = (statement.scope, statement.selector, statement.arg_name)
                    self.bind(key, _Binding(statement.value, where))
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            where = f"{name}, line {line}" if line else name
            raise UserError(
                f"{where}: not gin syntax: {getattr(error, 'msg', error)}",
                "Write `Class.field = value` or `NAME = value`; strings need quotes.",
            ) from None

    def override(self, binding: str) -> None:
        key, _, text = binding.partition("=")
        try:
            value = config_parser.ConfigParser(f"_ = {text}\n", _Delegate()).parse_statement().value
        except Exception:  # tokenize and gin raise several kinds: no literal, so a bare string
            value = text
        where = f"--gin.{binding}"
        try:
            scope, selector, field = config_parser.parse_binding_key(key)
        except ValueError:
            raise UserError(f"{where}: {key!r} is no name", "Write --gin.NAME=value.") from None
        if not field and selector not in self.macros:
            known = [*self.macros, *CONFIGURABLES]
            remedy = f"Did you mean {_nearest(selector, known)}? Macros: {', '.join(self.macros)}."
            raise UserError(f"{where}: no gin file defines {selector}", remedy)
        self.bind((scope, selector, field), _Binding(value, where))

    def bind(self, key: tuple[str, str, str], binding: _Binding) -> None:
        scope, name, field = key
        if not field:
            name = f"{scope}/{name}" if scope else name
            self.replace(self.macros, name, binding)
            return
        cls = self.lookup(name, binding.where)
        names = [f.name for f in fields(cls)]
        if field not in names:
            remedy = f"Did you mean {_nearest(field, names)}? Fields: {', '.join(names)}."
            raise UserError(f"{binding.where}: {name} has no field {field!r}", remedy)
        self.replace(self.fields, key, binding)

    def replace(self, bindings: dict[Any, _Binding], key: Any, binding: _Binding) -> None:
        if key in bindings:
            self.replaced.append(bindings[key].value)
        bindings[key] = binding

    def lookup(self, name: str, where: str) -> type:
        if name not in CONFIGURABLES:
            remedy = f"Did you mean {_nearest(name, CONFIGURABLES)}? Known: "
            raise UserError(
                f"{where}: unknown class {name!r}", remedy + f"{', '.join(CONFIGURABLES)}."
            )
        return configurable(name)

    # Building.

    def build_root(self, root: str, part: bool = False) -> Any:
        value = self.build(configurable(root), scope="", where=root)
        if part:
            return value
        self.excuse(self.replaced)
        for (scope, name, field), binding in self.fields.items():
            if (scope, name, field) not in self.used_fields:
                ref = f"@{scope}/{name}()" if scope else f"@{name}()"
                raise UserError(
                    f"{binding.where}: {name}.{field} is set, but {root} uses no {ref}",
                    f"Remove the line, or refer to {ref} where it belongs.",
                )
        for name, binding in self.macros.items():
            if name not in self.used_macros:
                used = [*self.used_macros, *(set(self.macros) - {name})]
                raise UserError(
                    f"{binding.where}: the macro {name} is set, but nothing uses %{name}",
                    f"Did you mean {_nearest(name, used)}? Otherwise remove the line.",
                )
        return value

    def build(self, cls: type, scope: str, where: str, base: Any = None) -> Any:
        """One `cls`; fields without a binding come from `base`, else from the defaults."""
        hints = typing.get_type_hints(cls)
        values, places = {}, {}
        for field in fields(cls):
            found = self.find(scope, cls.__name__, field.name)
            otherwise = getattr(base, field.name) if base is not None else default(field)
            if found is not None:
                place = f"{cls.__name__}.{field.name}"
                value, places[field.name] = self.evaluate(found.value, found.where, scope)
                values[field.name] = checked(value, hints[field.name], place, places[field.name])
            elif type(otherwise).__name__ in CONFIGURABLES:
                values[field.name] = self.build(type(otherwise), scope, where, otherwise)
            elif otherwise is not dataclasses.MISSING:
                values[field.name] = otherwise
            elif dataclasses.is_dataclass(hints[field.name]):
                values[field.name] = self.build(hints[field.name], scope, where)
            else:
                raise UserError(
                    f"{where}: {cls.__name__}.{field.name} has no value",
                    f"Set {cls.__name__}.{field.name} in a gin file.",
                )
        try:
            return cls(**values)
        except (ValueError, TypeError, UserError) as error:
            raise _located(error, cls, places, where) from None

    def excuse(self, values: Iterable[Any]) -> None:
        """Counts as used what only a replaced value refers to: `llm=None` after `llm=@Llm()`."""
        for value in values:
            if isinstance(value, _Macro) and value.name in self.macros:
                if value.name not in self.used_macros:
                    self.used_macros.add(value.name)
                    self.excuse([self.macros[value.name].value])
            elif isinstance(value, _Reference):
                for key in set(self.fields) - self.used_fields:
                    if key[1] == value.name and key[0] in ("", value.scope):
                        self.used_fields.add(key)
                        self.excuse([self.fields[key].value])
            elif isinstance(value, list | tuple):
                self.excuse(value)

    def find(self, scope: str, name: str, field: str) -> _Binding | None:
        """The binding in the innermost of the scopes "", "a", "a/b" of scope "a/b"."""
        found = None
        parts = scope.split("/") if scope else []
        for depth in range(len(parts) + 1):
            key = ("/".join(parts[:depth]), name, field)
            if key in self.fields:
                self.used_fields.add(key)
                found = self.fields[key]
        return found

    def evaluate(self, value: Any, where: str, scope: str) -> tuple[Any, str]:
        """The value behind macros and references, and the place that wrote it."""
        seen: list[str] = []
        while isinstance(value, _Macro):
            if value.name not in self.macros or value.name in seen:
                near = _nearest(value.name, [m for m in self.macros if m not in seen])
                fault = "refers to itself" if value.name in seen else "is not set"
                raise UserError(f"{where}: %{value.name} {fault}", f"Did you mean %{near}?")
            seen.append(value.name)
            self.used_macros.add(value.name)
            value, where = self.macros[value.name].value, self.macros[value.name].where
        if isinstance(value, _Reference):
            cls = self.lookup(value.name, where)
            if not value.evaluate:
                raise UserError(f"{where}: @{value.name} is the class", f"Write @{value.name}().")
            return self.build(cls, value.scope or scope, where), where
        if isinstance(value, list | tuple):
            return tuple(self.evaluate(item, where, scope)[0] for item in value), where
        if isinstance(value, dict):
            return {k: self.evaluate(v, where, scope)[0] for k, v in value.items()}, where
        return value, where


def _located(error: Exception, cls: type, places: dict[str, str], where: str) -> UserError:
    """The same complaint, with the line of the bound field that its message names first."""
    message = error.message if isinstance(error, UserError) else str(error)
    named = [word for word in re.findall(r"\w+", message) if word in places]
    place = places[named[0]] if named else where
    remedy = error.remedy if isinstance(error, UserError) else f"Correct {cls.__name__} there."
    return UserError(f"{place}: {cls.__name__}: {message}", remedy)


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return found[0] if found else "nothing (none is known)"
