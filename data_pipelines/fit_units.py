"""Fits the k-means of a unit tokenizer on the train splits of datasets with "audio".

    python -m data_pipelines.fit_units --datasets prompts joe slt --out runs/units
    python -m data_pipelines.fit_units --encoder path/to/hubert-base-ls960 --layer 9 --out DIR

A dataset then has its units as a family: `DatasetBuildConfig.tokenizers = ("units-hubert=DIR",)`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines import fetch
from data_pipelines.progress import Progress
from slm_jax.audio import decode
from slm_jax.data.registry import open_recordings
from slm_jax.data.schema import AUDIO
from slm_jax.errors import UserError, run_main
from slm_jax.tokenizers import kmeans
from slm_jax.tokenizers.unit_encoder import UnitEncoder
from slm_jax.tokenizers.unit_tokenizer import save_units


def draw_features(
    encoder: UnitEncoder, datasets: Sequence[str], frames: int, seed: int
) -> np.ndarray:
    """Features float16 [N, D] of recordings of train splits, N about `frames` or all there are.

    Datasets give like parts of it, as far as they last; which recordings is drawn by `seed`.

    Raises:
      UserError: a dataset is not there, or has no "audio".
    """
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    with Progress("features", frames) as progress:
        for left, name in zip(range(len(datasets), 0, -1), datasets, strict=True):
            records, _ = open_recordings([name])
            wanted = (frames - sum(map(len, parts))) // left
            for index in rng.permutation(len(records)):
                audio = decode.load(records[index][AUDIO].flac)
                parts.append(encoder.features(audio).astype(np.float16))
                progress.advance(len(parts[-1]))
                wanted -= len(parts[-1])
                if wanted <= 0:
                    break
    if not parts:
        raise UserError(f"{', '.join(datasets)}: no recording to fit on", "name other datasets")
    return np.concatenate(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.fit_units")
    parser.add_argument("--datasets", nargs="+", default=["prompts"], metavar="NAME")
    parser.add_argument("--encoder", default="whisper_tiny_en", help="asset, or a model's folder")
    parser.add_argument("--layer", type=int, default=3, help="after so many layers")
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--frames", type=int, default=200_000, help="to fit on; 50 are a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)
    encoder = UnitEncoder.load(fetch.locate(args.encoder), args.layer)
    features = draw_features(encoder, args.datasets, args.frames, args.seed)
    means = kmeans.fit(features, args.clusters, args.seed, source=encoder.source)
    save_units(args.out, means, args.encoder, args.layer)
    print(f"{args.out}: {args.clusters} units of {len(features)} frames, {means.fingerprint}")


if __name__ == "__main__":
    run_main(main)
