"""Writes a trained checkpoint as a Hugging Face folder.

python launch/export.py --checkpoint=runs/NAME --output=DIR

DIR holds the text LLM as `transformers` loads it (LoRA merged, with its tokenizer), the speech
parts as speech.safetensors, and the job as config.gin.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_pipelines import fetch
from slm_jax import config
from slm_jax.errors import run_main
from slm_jax.interop.export import export_llm
from slm_jax.tokenizers.text import TextTokenizer
from slm_jax.training import checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Writes a checkpoint as a Hugging Face folder.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, or one step of it")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    args = parser.parse_args(argv)
    trained = checkpoint.load_params(args.checkpoint)
    speech = dict(trained.params)
    export_llm(
        trained.job.system.model.backbone,
        speech.pop("backbone"),
        args.output,
        dtype=args.dtype,
        tokenizer=TextTokenizer.load(fetch.locate(trained.job.text_tokenizer)),
        extra=speech,
        texts={"config.gin": config.dump(trained.job)},
    )
    print(f"{args.output}: step {trained.step} of {args.checkpoint}")


if __name__ == "__main__":
    run_main(main)
