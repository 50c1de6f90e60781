"""Which tokenizer makes a family of codes, and what its weights are."""

from __future__ import annotations

from data_pipelines import fetch
from data_pipelines.build_config import (
    MULAW,
    SPEECH_KINDS,
    UNITS,
    DatasetBuildConfig,
    kind_of,
    rate_of,
)
from slm_jax.data import manifest
from slm_jax.errors import UserError
from slm_jax.tokenizers.asr_units import AsrUnits
from slm_jax.tokenizers.codecs.codec import Codec
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec
from slm_jax.tokenizers.codecs.frame_latents import FrameLatents
from slm_jax.tokenizers.codecs.kinds import load_codec
from slm_jax.tokenizers.mulaw import MuLaw
from slm_jax.tokenizers.spoken_units import Units
from slm_jax.tokenizers.taste import taste_fingerprint
from slm_jax.tokenizers.unit_tokenizer import UnitTokenizer, units_fingerprint


def load(cfg: DatasetBuildConfig, family: str) -> Codec | Units | MuLaw:
    """The tokenizer that makes a family of `cfg`.

    Raises:
      UserError: its folder holds no such tokenizer.
    """
    folder, kind = cfg.folder(family), kind_of(family)
    if kind == UNITS:
        return UnitTokenizer.load(folder, locate=fetch.locate)
    if kind == MULAW:
        return MuLaw(rate_of(family))
    if kind == "latents":
        return FrameLatents.load(folder)
    if kind == "asr_units":
        return AsrUnits.load(fetch.locate(cfg.asr), folder)
    return load_codec(kind, folder) if folder else FrameCodec.load()


def fingerprint(cfg: DatasetBuildConfig, family: str) -> str | None:
    """What `load` would make it with; None for families of no speech tokenizer.

    Raises:
      UserError: as `load`.
    """
    kind = kind_of(family)
    if kind == "taste":
        return taste_fingerprint(cfg.taste)
    if kind == UNITS:
        return units_fingerprint(cfg.folder(family))
    return load(cfg, family).spec.fingerprint if kind in SPEECH_KINDS else None


def check(cfg: DatasetBuildConfig) -> None:
    """Refuses streams of other weights than `cfg` names: two tokenizers never mix in one run.

    Raises:
      UserError: a family that stands in the dataset was made by another tokenizer.
    """
    if not (cfg.root / manifest.FILE).exists():
        return
    held = manifest.load_manifest(cfg.root).families
    for family in cfg.parts:
        if family not in held:
            continue
        made, wanted = held[family].spec.fingerprint, fingerprint(cfg, family)
        if wanted not in (None, made):
            own = f", or the stream: tokenizers = ('{kind_of(family)}-NAME=DIR',)"
            raise UserError(
                f"the {family} codes of {cfg.root} were made by tokenizer {made}, not by {wanted}",
                f"delete {cfg.root} to build it again, or give the dataset another name"
                + (own if kind_of(family) in SPEECH_KINDS else ""),
            )
