"""Measures a finished run or a speech tokenizer and writes the report, or writes it again.

python launch/evaluate.py --run=runs/NAME [--report_only] [--beside=runs/OTHER ...]
python launch/evaluate.py --run=runs/NAME --watch
python launch/evaluate.py --suite=swap [--taste DIR] [--datasets NAME ...] [--pairs NAME ...]
python launch/evaluate.py --suite=tokenizer [--taste DIR] [--datasets NAME ...] [--unheard NAME ...]
python launch/evaluate.py --suite=tokenizers [--datasets NAME ...] [--codecs KIND=DIR ...]
  [--recordings NAME ...] [--units DIR ...] [--unit_vocoders DIR ...] [--probes N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax

from data_pipelines import fetch
from data_pipelines.progress import Progress
from slm_jax.audio.pitch import pitch
from slm_jax.data import registry
from slm_jax.data.schema import AUDIO, WORDS, Record
from slm_jax.decoding.job import DecodeJob
from slm_jax.decoding.load import load_model
from slm_jax.errors import UserError, run_main
from slm_jax.evaluation import readings, report, results, swap
from slm_jax.evaluation.prosody import Judges
from slm_jax.evaluation.run import evaluate_run, held_out_records
from slm_jax.evaluation.watch import watch
from slm_jax.paths import cache_dir
from slm_jax.tokenizers.taste import Taste

RUN = Path("runs") / "taste_pretrain"
PAIRS = 60  # of each kind that the swap experiment takes
GENDERS = {  # of the speakers that the pipelines know; one mixed of several voices has none
    "asterisk-en": "female",
    "en_US-joe-medium": "male",
    "slt": "female",
    "awb": "male",
    "kal16": "male",
    "rms": "male",
    "jf_nezumi": "female",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = _arguments(argv)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "programs"))
    if args.watch:
        watch(args.run, fetch.locate)
        return
    if not args.report_only:
        if args.suite == "swap":
            swap_words(args.run, args.taste, args.datasets, args.pairs, args.limit)
        elif args.suite == "tokenizer":
            measure_tokenizer(args.run, args.taste, args.datasets, args.unheard, args.limit)
        elif args.suite == "tokenizers":
            compare_tokenizers(args)
        else:
            measure(args.run)
    if args.beside:
        results.set_beside(args.run, args.beside)
    print(report.write(args.run))


def measure(run: Path) -> None:
    """Everything that is measured on a run, into its folder."""
    trained = load_model(run)
    decode = DecodeJob()
    evaluate_run(
        trained.job,
        trained.model,
        llm=fetch.locate(trained.job.llm.path) if trained.job.llm else None,
        text_tokenizer=fetch.locate(trained.job.text_tokenizer),
        whisper=fetch.locate(decode.asr),
        pronunciations=fetch.locate(decode.pronunciations),
        decode=decode,
        voices=fetch.speaker_encoder(),
        run_dir=run,
    )


def measure_tokenizer(
    run: Path,
    taste: Path | None,
    datasets: Sequence[str],
    unheard: Sequence[str],
    limit: int | None,
) -> None:
    """Resynthesis, rate and robustness of a tokenizer, into RUN/tokenizer."""
    from slm_jax.evaluation.tokenizer_suite import run_suite  # of extra `eval`

    run_suite(
        taste,
        datasets,
        unheard,
        run / "tokenizer",
        whisper=fetch.locate(DecodeJob().asr),
        pronunciations=fetch.locate(DecodeJob().pronunciations),
        speaker_encoder=fetch.speaker_encoder(),
        text_tokenizer=fetch.locate("smollm2"),
        limit=limit,
    )


def compare_tokenizers(args: argparse.Namespace) -> None:
    """All tokenizers that run here beside well-known codecs and damages, into RUN/tokenizers."""
    from data_pipelines.recordings import open_recordings  # of extra `eval`, as what follows
    from slm_jax.evaluation.tokenizers import systems
    from slm_jax.evaluation.tokenizers.suite import run_suite

    decode = DecodeJob()
    run_suite(
        args.datasets,
        open_recordings(args.recordings, args.limit),
        [
            *systems.starter_codecs(),
            *map(systems.parse_codec, args.codecs),
            *systems.all_units([None, *args.units], args.unit_vocoders, decode.asr, fetch.locate),
        ],
        args.run / "tokenizers",
        taste=args.taste,
        whisper=fetch.locate(decode.asr),
        pronunciations=fetch.locate(decode.pronunciations),
        speaker_encoder=fetch.speaker_encoder(),
        text_tokenizer=fetch.locate("smollm2"),
        limit=args.limit,
        probes=args.probes,
        genders=GENDERS | dict(args.genders),
    )


def swap_words(
    run: Path,
    taste: Path | None,
    datasets: Sequence[str],
    twice: Sequence[str],
    limit: int | None,
) -> None:
    """The swap experiment on held-out speech; `twice` are datasets with re-read sentences."""
    from slm_jax.evaluation.pocket import PocketSphinx  # of extra `eval`: other suites go without

    limit = limit or PAIRS
    records = _held_out(datasets)
    pairs = readings.time_scaled(records, limit) + readings.pitch_shifted(records, limit)
    pairs += readings.re_spoken(_held_out(twice), limit)
    if not pairs:
        raise UserError(
            f"no held-out utterance of {', '.join(datasets)} has a word between two others",
            "name other datasets with --datasets",
        )
    decode = DecodeJob()
    assets = fetch.locate(decode.asr), fetch.locate(decode.pronunciations)
    tokenizer = Taste.load(*assets, taste)
    with Progress("swap", len(pairs)) as progress:
        judges = Judges(PocketSphinx(), pitch)
        found = swap.evaluate(tokenizer, pairs, judges, run, advance=progress.advance)
    results.save(run, "swap", found)


def _held_out(datasets: Sequence[str]) -> list[Record]:
    families = [WORDS, AUDIO]
    return [
        record
        for name in datasets
        for record in held_out_records(registry.get(name).open(families), families)
    ]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--suite",
        choices=("run", "swap", "tokenizer", "tokenizers"),
        default="run",
        help="what is measured",
    )
    parser.add_argument("--run", type=Path, default=RUN, metavar="DIR", help=f"default {RUN}")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="measure each checkpoint of a run as it appears, into DIR/held_out, until the last",
    )
    parser.add_argument("--report_only", action="store_true", help="measure nothing")
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a measured run whose cross-entropies the report sets beside this run's; repeatable",
    )
    speech = parser.add_argument_group("--suite=swap, --suite=tokenizer and --suite=tokenizers")
    speech.add_argument("--taste", type=Path, metavar="DIR", help="tokenizer; default the starter")
    names = {"nargs": "+", "metavar": "NAME"}
    speech.add_argument("--datasets", default=["prompts"], help="default prompts", **names)
    speech.add_argument("--pairs", default=[], help="swap: datasets of re-read sentences", **names)
    unheard = "tokenizer: datasets or voices that no training stage has heard"
    speech.add_argument("--unheard", default=[], help=unheard, **names)
    kinds = "tokenizers: fetched recordings of no dataset: librivox, prompts_es and the like"
    speech.add_argument("--recordings", default=[], help=kinds, **names)
    kinds = "tokenizers: codecs beside the starter, as mimi=DIR, or mimi=DIR@8 for 8 levels"
    speech.add_argument("--codecs", default=[], help=kinds, nargs="+", metavar="KIND=DIR")
    folders = {"default": [], "nargs": "+", "type": Path, "metavar": "DIR"}
    kinds = "tokenizers: units beside the starter's, of fit_units or train_asr_units"
    speech.add_argument("--units", help=kinds, **folders)
    kinds = "tokenizers: unit vocoders, which speak the units that they were trained for"
    speech.add_argument("--unit_vocoders", help=kinds, **folders)
    learn = "tokenizers: train probes on the codes of N utterances of each train split"
    speech.add_argument("--probes", type=int, metavar="N", help=learn)
    labels = "tokenizers: genders of speakers of your own, as NAME=female, for a probe"
    speech.add_argument(
        "--genders", default=[], help=labels, nargs="+", metavar="NAME=GENDER", type=_pair
    )
    most = f"swap: pairs of each kind (default {PAIRS}); tokenizer: utterances of each voice"
    speech.add_argument("--limit", type=int, metavar="N", help=most)
    return parser.parse_args(argv)


def _pair(argument: str) -> tuple[str, str]:
    name, separator, value = argument.rpartition("=")
    if not (name and separator and value):
        raise argparse.ArgumentTypeError(f"{argument!r} is not written NAME=VALUE")
    return name, value


if __name__ == "__main__":
    run_main(main)
