"""gin/models/*.gin against the parameter counts that the models are published with."""

import jax
import pytest
from flax import nnx

from slm_jax import config
from slm_jax.config import GIN_DIR
from slm_jax.models.backbone import Backbone
from slm_jax.nn import tree

PARAMETERS = {
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "llama2_7b": 6_738_415_616,
    "llama32_1b": 1_235_814_400,
    "llama31_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "qwen25_0_5b": 494_032_768,
    "qwen3_0_6b": 596_049_920,
}


def test_every_file_is_counted():
    assert {path.stem for path in (GIN_DIR / "models").glob("*.gin")} == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name):
    job = config.load(["taste_pretrain.gin", f"models/{name}.gin"])
    sizes = job.system.model.backbone
    _, params = tree.pure_params(nnx.eval_shape(lambda: Backbone(sizes, nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]
    assert job.system.layout.rows[0].classes == sizes.vocab_size
