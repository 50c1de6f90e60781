"""gin/systems/*.gin against the parameter counts that the systems are published with."""

import jax
import pytest
from flax import nnx

from slm_jax import config
from slm_jax.nn import tree

# Parameters of the published model, speech encoders and codecs left out: the count on its card or
# in its paper where rounded, else what transformers (or litgpt, by arithmetic) has at its sizes.
QWEN_7B, LLAMA_8B = 7_615_616_512, 8_030_261_248
PARAMETERS = {
    "moshi": 7_690_000_000,  # card of moshiko
    "moshi_stt": 2_600_000_000,  # card of stt-2.6b-en
    "csm": 1_552_791_552,  # CsmConfig
    "mini_omni": 357_898_112 + 2 * 181_120 * 896,  # Qwen2 0.5B's layers, litgpt's padded vocabulary
    "musicgen": 419_584_000,  # MusicgenDecoderConfig; without the text model
    # Card of Kimi-Audio-7B-Instruct, whose head of speech has the text's ids, too.
    "kimi_audio": 9_770_000_000 - 151_663 * 3584,
    "llama_omni": LLAMA_8B + 425_000_000,  # the paper's count of the decoder
    "qwen25_omni_talker": QWEN_7B + 1_351_360_256,  # Qwen2_5OmniTalkerConfig
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_size(name):
    system = config.load([f"systems/{name}.gin"], root="System")
    _, params = tree.pure_params(nnx.eval_shape(lambda: system.build(nnx.Rngs(0))))
    if name == "musicgen":
        params = {part: leaf for part, leaf in params.items() if part != "backbone"}
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == pytest.approx(PARAMETERS[name], rel=0.03)
