"""Trains all tiny systems for equal arithmetic on the same shards, and compares them.

python launch/compare.py [--gin_file=compare.gin] [--gin.SYSTEMS="('moshi','glm4_voice')"]

Prints a table, and writes it with a page to runs/NAME. The same command continues what was stopped;
systems that are finished are not trained again. Exit status 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from data_pipelines import build, fetch
from slm_jax import config
from slm_jax.data import registry
from slm_jax.data.schema import AUDIO, WORDS, Record
from slm_jax.errors import UserError, run_main
from slm_jax.evaluation.compare import budget, measure, report, twins
from slm_jax.evaluation.compare.job import CompareJob
from slm_jax.evaluation.compare.voices import Voices
from slm_jax.evaluation.run import held_out_records
from slm_jax.layouts import show
from slm_jax.models.system import System
from slm_jax.nn import tree
from slm_jax.paths import cache_dir
from slm_jax.streams import StreamSpec, fingerprint
from slm_jax.tokenizers.asr import Asr
from slm_jax.tokenizers.codecs.frame_codec import FrameCodec
from slm_jax.tokenizers.codecs.frame_latents import FrameLatents
from slm_jax.tokenizers.taste import Taste
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.tokenizers.unit_vocoder import UnitVocoder
from slm_jax.training import distributed, loop

LINES = "compare.jsonl"
EXAMPLE = (("hell", "o"), ("ther", "e"))  # the words of the grids


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Compares systems trained on the same shards.")
    given = [*(sys.argv[1:] if argv is None else argv)]
    if not any(flag.startswith("--gin_file") for flag in given):
        given.append("--gin_file=compare.gin")
    job, _ = config.from_flags("CompareJob", parser, given)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    for source in job.sources:
        build.ensure_dataset(source)
    lines = Comparison(job).run()
    if any(line["errors"] for line in lines):
        raise SystemExit(1)


class Comparison:
    """The systems of a job, one after the other.

    Args:
      job: what is compared.
    """

    def __init__(self, job: CompareJob):
        self.job = job
        self.dataset = registry.get(job.dataset).open()
        families = [f for f in self.dataset.specs if f != "speaker"]
        self.held_out = self._short(held_out_records(self.dataset, families))
        light = [family for family in families if family != AUDIO]
        self._longest = self._short(self.dataset.split("train", light))
        self._twins = twins.twins(self.held_out, self.dataset.specs, job.twins, job.seed)
        self._prompts = measure.prompts(self.held_out, job.prompts)
        self._voices = load_voices(job, self.dataset.specs)
        self._file = job.run_dir / LINES

    def run(self) -> list[dict[str, Any]]:
        """Trains and measures what is not there yet, and writes the tables."""
        names = self.job.systems or all_systems(self.job.folder)
        print(f"{len(names)} systems, {len(self.held_out)} held-out utterances", flush=True)
        kept, lines, began, done = self._kept(), [], time.monotonic(), 0
        for number, name in enumerate(names, start=1):
            line = self._system(name, kept)
            lines.append(line)
            if line.pop("new"):
                done += 1
                self._keep(line)
                each = (time.monotonic() - began) / done
                left = each * (len(names) - number) / 60
                failed = ", ".join(line["errors"].values())
                print(
                    f"[{number}/{len(names)}] {name}: {line['seconds']:.0f} s; {each:.0f} s a "
                    f"system, about {left:.0f} min left" + f"; failed: {failed}" * bool(failed),
                    flush=True,
                )
        self._report(lines)
        return lines

    def _system(self, name: str, kept: dict[str, Any]) -> dict[str, Any]:
        """The line of a system: the kept one if nothing has changed, else a new one."""
        began = time.monotonic()
        line: dict[str, Any] = {"system": name, "errors": {}, "new": True}

        def stage(what: str, run: Callable[[], dict[str, Any]]) -> bool:
            try:
                line.update(run())
            except Exception as error:  # one system's fault is no other's: it stands in the table
                text = error.message if isinstance(error, UserError) else repr(error)
                line["errors"][what] = " ".join(text.split())[:300]
                return False
            return True

        found: dict[str, Any] = {}

        def planned() -> dict[str, Any]:
            system = config.load([f"{self.job.folder}/{name}.gin"], root="System")
            missing = set(system.layout.families) - system.layout.optional - {*self.dataset.specs}
            if missing:
                return {"missing": sorted(missing)}
            system.layout.check(self.dataset.specs)
            wanted = [*self.held_out, *self._longest]
            families = [f for f in system.layout.families if f in self.dataset.specs]
            data = self.dataset.manifest.fingerprint("train", families)
            found["job"], plan = budget.train_job(self.job, name, system, wanted, data)
            at_once = not system.layout.shift
            return {
                **plan._asdict(),
                "fingerprint": self._identity(found["job"]),
                "at_once": at_once,
            }

        done = stage("planned", planned)
        if "missing" in line:
            return line | {"new": False}
        if done:
            if (old := kept.get(name)) and old["fingerprint"] == line["fingerprint"]:
                return old | {"new": False}
            trained = found["job"]

            def train() -> dict[str, Any]:
                found["outcome"] = loop.train(trained)
                if not found["outcome"].finished:
                    raise SystemExit(distributed.PREEMPTED)
                return {}

            if stage("trained", train):
                params = found["outcome"].params
                model = tree.merge(found["outcome"].graphdef, params)
                stage("scored", lambda: measure.score(trained, params, self.held_out, self._twins))
                clips = self.job.run_dir / "clips" / name
                stage(
                    "decoded",
                    lambda: measure.spoken(
                        self.job, trained, model, self._prompts, self._voices, clips
                    ),
                )
        jax.clear_caches()
        return line | {"seconds": time.monotonic() - began}

    def _short(self, records: Any) -> list[Record]:
        return [r for r in records if r[WORDS].duration <= self.job.max_seconds]

    def _identity(self, trained: Any) -> str:
        """Equal if and only if the line of a system would be."""
        measured = [getattr(self.job, name) for name in ("prompts", "twins", "max_seconds")]
        voices = [repr(self.job.sampling), self.job.unit_vocoder, self.job.asr]
        return fingerprint(trained.name, measure.PROTOCOL, *measured, *voices)

    def _kept(self) -> dict[str, Any]:
        """System -> its last line without errors."""
        if not self._file.exists():
            return {}
        lines = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]
        return {line["system"]: line for line in lines if not line["errors"]}

    def _keep(self, line: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _report(self, lines: list[dict[str, Any]]) -> None:
        head = {
            "operations": self.job.operations,
            "utterances": len(self.held_out),
            "seconds": sum(record[WORDS].duration for record in self.held_out),
            "ceilings": measure.ceilings(self._prompts, self._voices),
        }
        grids = {line["system"]: grid(self.job.folder, line["system"]) for line in lines}
        print(report.write(self.job.run_dir, lines, grids, head))
        print(f"page: {self.job.run_dir / report.HTML}")


def load_voices(job: CompareJob, specs: Mapping[str, StreamSpec]) -> Voices:
    """What makes sound of the streams of a dataset, and the recogniser.

    Raises:
      UserError: the streams were made by other tokenizers.
    """
    whisper = fetch.locate(job.asr)
    taste = Taste.load(whisper, fetch.locate(job.pronunciations), job.taste or None)
    codec = FrameCodec.load()
    latents = FrameLatents.load() if "latents" in specs else None
    for family, voice in {"taste": taste, "codec": codec, "latents": latents}.items():
        if voice is None:
            continue
        spec, made = voice.spec, specs[family].fingerprint
        if made != spec.fingerprint:
            raise UserError(
                f"the {family} of {job.dataset} were made by tokenizer {made}, not by "
                f"{spec.fingerprint}, which is to speak them",
                "take the dataset of the starter tokenizers, or set CompareJob.taste",
            )
    units = None
    if job.unit_vocoder:
        units = UnitVocoder.load(job.unit_vocoder, specs["units"].fingerprint)
    text = TextTokenizer.load(fetch.locate(job.text_tokenizer))
    return Voices(Asr(whisper), text, taste, codec, units, latents)


def all_systems(folder: str) -> tuple[str, ...]:
    """Files of a folder of gin/ that have a namesake in gin/systems."""
    names = sorted(path.stem for path in (config.GIN_DIR / folder).glob("*.gin"))
    return tuple(name for name in names if (config.GIN_DIR / "systems" / f"{name}.gin").exists())


def grid(folder: str, name: str) -> str:
    """The layout of a system over an example; why not, where it has none."""
    try:
        system: System = config.load([f"{folder}/{name}.gin"], root="System")
        return show.render(system.layout, EXAMPLE, frames=8)
    except Exception as error:  # an example is too short for some layouts
        return f"no grid of this example: {error}"


if __name__ == "__main__":
    run_main(main)
