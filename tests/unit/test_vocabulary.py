import json

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from slm_jax.decoding.vocabulary import Vocabulary
from slm_jax.layouts import Delay, Layout, Par, Stream, Text
from slm_jax.tokenizers.text import TextTokenizer

# Byte-level pieces ("Ġ" is a space, "Ã" the first byte of "é"), and whether they may be written.
SPOKEN = ["Ġthe", "ing", ",", "'s", "ĠA", "Ã©", "Ġl'Ã©"]
UNSPOKEN = ["<|im_start|>", "Ġ", "Ġ5", "5", "Ċ", "%%", "Ġ-", "ĠĠthe", "Ã", '"', "_type", "ĠÃ"]


def tokenizer_of(folder):
    pieces = ["<|im_end|>", *SPOKEN, *UNSPOKEN]
    bpe = tokenizers.Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    bpe.save(str(folder / "tokenizer.json"))
    settings = json.dumps({"eos_token": "<|im_end|>"})
    (folder / "tokenizer_config.json").write_text(settings)
    return TextTokenizer.load(folder)


def test_what_can_be_said_and_what_begins_a_word(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    size = tokenizer.vocab_size + 5  # embeddings are often padded
    speech = Delay(Stream("taste", (4,)), by=(1,), clock="word")
    layout = Layout("test", Par((Text("text", size, bos=0, eos=0), speech)))
    table = Vocabulary.of(tokenizer, layout)
    assert len(table.spoken) == len(table.starts) == size
    assert table.eos == 0
    for id, piece in enumerate(tokenizer.pieces[1:], start=1):
        assert table.spoken[id] == (piece in SPOKEN), piece
        assert table.starts[id] == piece.startswith("Ġ"), piece
    assert table.spoken[0] and table.starts[0]
    assert not np.any(table.spoken[tokenizer.vocab_size :])
