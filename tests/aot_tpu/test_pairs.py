"""Jobs for TPUs that are not here."""

import aot_pairs
import pytest

from launch import plan
from slm_jax.errors import UserError

pytestmark = pytest.mark.aot

TOO_LARGE = [
    "--aot", "--gin_file=pods/taste_smollm2.gin", "--accelerator=v5e-1", "--gin.LORA_RANK=0",
    "--gin.BackboneConfig.layers=1", "--gin.BATCH_SIZE=1", "--gin.SEQ_LEN=128",
    "--gin.TEXT_VOCAB=4000000", "--gin.BackboneConfig.vocab_size=4000000",
]  # fmt: skip


@pytest.mark.parametrize("path", aot_pairs.of("tpu"), ids=lambda path: path.stem)
def test_pair_fits_and_sends_what_it_did(path, tmp_path):
    aot_pairs.check(path, tmp_path)


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"GiB of HBM a chip, v5e-1 has 15\.75") as caught:
        plan.main(TOO_LARGE)
    assert "more memory" in caught.value.remedy
