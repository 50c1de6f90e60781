"""Which layer of an encoder gives the units that know most of phones.

    python benchmarks/unit_layers.py --layers 1 2 3 4 --datasets prompts joe slt \
      --judged prompts joe slt rms

For each layer a k-means is fitted as data_pipelines.fit_units does, on fewer frames, and its units
of held-out speech are compared with the phones that pocketsphinx places (evaluation/tokenizers/
unit_quality.py); "shuffled" is what chance gives that many units.
"""

from __future__ import annotations

import argparse

import numpy as np

from data_pipelines import fetch
from data_pipelines.fit_units import draw_features
from slm_jax.audio import decode
from slm_jax.data import registry
from slm_jax.data.schema import AUDIO, WORDS
from slm_jax.evaluation.pocket import PocketSphinx
from slm_jax.evaluation.run import held_out_records
from slm_jax.evaluation.tokenizers.unit_quality import Phone, agreement, frame_labels
from slm_jax.tokenizers import kmeans
from slm_jax.tokenizers.unit_encoder import UNIT_RATE, UnitEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="whisper_tiny_en")
    parser.add_argument("--layers", nargs="+", type=int, required=True)
    parser.add_argument("--datasets", nargs="+", default=["prompts"])
    parser.add_argument("--judged", nargs="+", default=["prompts"])
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--limit", type=int, default=30, help="held-out utterances of each")
    args = parser.parse_args()
    judged = [
        record
        for name in args.judged
        for record in held_out_records(registry.get(name).open([WORDS, AUDIO]), [WORDS, AUDIO])[
            : args.limit
        ]
    ]
    audios = [decode.load(record[AUDIO].flac) for record in judged]
    sphinx = PocketSphinx()
    phones = [
        [Phone(*p) for p in sphinx.phones(audio, [w.text for w in record[WORDS].words])]
        for audio, record in zip(audios, judged, strict=True)
    ]
    print(f"{len(judged)} utterances of {', '.join(args.judged)}, fitted on {args.frames} frames")
    print("layer    PNMI  shuffled  phone purity  frames")
    for layer in args.layers:
        encoder = UnitEncoder.load(fetch.locate(args.encoder), layer)
        features = draw_features(encoder, args.datasets, args.frames, 0)
        means = kmeans.fit(features, args.clusters, 0, source=encoder.source)
        units = encoder.units(means, audios)
        labels = [
            frame_labels(one, UNIT_RATE, len(u)) for one, u in zip(phones, units, strict=True)
        ]
        found = agreement(np.concatenate(labels), np.concatenate(units))
        print(
            f"{layer:5d}  {found['pnmi']:6.3f}  {found['pnmi_shuffled']:8.3f}  "
            f"{found['phone_purity']:12.3f}  {found['frames']:6d}",
            flush=True,
        )


if __name__ == "__main__":
    main()
