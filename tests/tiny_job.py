"""A training job small enough for a test: a dataset on disk and gin text for a tiny backbone."""

import numpy as np

from slm_jax.data import dataset, schema
from slm_jax.streams import WORD, StreamSpec

VOCAB, BOS, EOS = 40, 1, 2
CODES = (8, 8)
SPECS = [
    StreamSpec(schema.WORDS, "words", WORD),
    StreamSpec("text-tiny", "codes", WORD, vocab=(VOCAB,), fingerprint="text-tiny-1"),
    StreamSpec("taste", "codes", WORD, vocab=CODES, fingerprint="taste-1"),
]


def record(number, seed):
    """Two to nine words of one to three ids; a word's codes follow from its first id."""
    random = np.random.default_rng((seed, number))
    sizes = random.integers(1, 4, random.integers(2, 10))
    index = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    ids = random.integers(3, VOCAB, len(index)).astype(np.int32)
    first = ids[np.searchsorted(index, np.arange(len(sizes)))]
    codes = np.stack([first % CODES[0], first // 3 % CODES[1]], 1).astype(np.int32)
    name = f"u{number}"
    words = tuple(schema.Word(f"w{i}", i * 0.3, i * 0.3 + 0.2) for i in first)
    text = " ".join(word.text for word in words)
    return {
        schema.WORDS: schema.Utterance(name, words, "en", "s", 0.3 * len(words), "made", text),
        "text-tiny": schema.StreamItem(name, ids[:, None], index),
        "taste": schema.StreamItem(name, codes),
    }


def write_data(root, seed=0):
    """A dataset of 60 train and 6 validation records in `root`."""
    splits = {
        "train": [record(i, seed) for i in range(60)],
        "validation": [record(i, seed) for i in range(60, 66)],
    }
    return dataset.write_dataset(root, "tiny", SPECS, splits, command="make tiny")


def gin(data, runs, **more):
    """Gin text of a job over the dataset in `data`; `more` adds or replaces bindings."""
    bindings = {
        "TrainJob.name": "tiny",
        "TrainJob.runs": str(runs),
        "TrainJob.steps": 12,
        "TrainJob.batch_size": 8,
        "TrainJob.seq_len": 48,
        "TrainJob.eval_every": 6,
        "TrainJob.prompts": 0,
        "MixtureSpec.parts": ((str(data), 1.0),),
        "Checkpoints.every": 4,
        "Optimizer.learning_rate": 0.01,
        "LossWeights.kl": 0.3,
        "Layout.name": "tiny",
        "Text.family": "text-tiny",
        "Text.vocab": VOCAB,
        "Text.bos": BOS,
        "Text.eos": EOS,
        "Stream.family": "taste",
        "Stream.vocab": CODES,
        "Delay.by": (1, 2),
        "Delay.clock": "word",
        "SpeechLMConfig.codebooks": CODES,
        "SpeechLMConfig.code_width": 8,
        "BackboneConfig.vocab_size": VOCAB,
        "BackboneConfig.width": 32,
        "BackboneConfig.layers": 2,
        "BackboneConfig.heads": 4,
        "BackboneConfig.kv_heads": 2,
        "BackboneConfig.head_dim": 8,
        "BackboneConfig.mlp_width": 64,
        "BackboneConfig.lora_rank": 2,
    } | more
    lines = [f"{name} = {value!r}" for name, value in bindings.items()]
    lines += [
        "Layout.of = @Par()",
        "Par.parts = (@Text(), @Delay())",
        "Delay.of = @Stream()",
        "System.model = @SpeechLMConfig()",
        "SpeechLMConfig.backbone = @BackboneConfig()",
    ]
    return "\n".join(lines) + "\n"
