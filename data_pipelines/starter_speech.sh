#!/usr/bin/env bash
# The speech that the starter tokenizer learns from and is measured on, as datasets in the cache.
#
#   pip install 'slm_jax[synthesis]'; data_pipelines/starter_speech.sh spoken/
#
# The training voices read sentences of their own; held-out sentences are read by joe and slt, by the
# two voices that nothing trains on (rms, nezumi), and twice, slow and fast, for the swap experiment.
# What is finished is kept: the same command again goes on. An hour or two on two cores.
set -euo pipefail
out=${1:?give a folder for the speech}
mkdir -p "$out"

sentences() { python -m data_pipelines.sentences "$@"; }
# read_by DATASET VOICE SENTENCES [more]: synthesises, and builds the dataset from it.
read_by() {
  local name=$1 voice=$2 text=$3
  shift 3
  python -m data_pipelines.synthesise "$out/$text.txt" --voice "$voice" --out "$out/$name" "$@"
  python -m data_pipelines.build "$name" --corpus jsonl --path "$out/$name/manifest.jsonl" --families ""
}

sentences "$out/joe.txt" --count 2000
sentences "$out/slt.txt" --skip 2000 --count 900
sentences "$out/awb.txt" --skip 2900 --count 900
sentences "$out/blend.txt" --skip 3800 --count 500
sentences "$out/kal.txt" --skip 4300 --count 600
sentences "$out/joe_held.txt" --split held_out --count 40
sentences "$out/slt_held.txt" --split held_out --skip 40 --count 30
sentences "$out/rms.txt" --split held_out --skip 70 --count 36
sentences "$out/nezumi.txt" --split held_out --skip 106 --count 34
sentences "$out/twice.txt" --split held_out --skip 140 --count 26
cat "$out/joe_held.txt" >> "$out/joe.txt"
cat "$out/slt_held.txt" >> "$out/slt.txt"

python -m data_pipelines.build prompts
read_by joe piper joe
read_by slt flite:slt slt
read_by awb flite:awb awb
read_by kal flite:kal16 kal
read_by blend kokoro:jf_alpha+jf_gongitsune+jf_tebukuro+jm_kumo blend
read_by rms flite:rms rms
read_by nezumi kokoro:jf_nezumi nezumi
for rate in 0.8 1.25; do
  read_by "joe_$rate" piper twice --rate "$rate"
  read_by "rms_$rate" flite:rms twice --rate "$rate"
done
