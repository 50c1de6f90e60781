"""Tables that say which published tensors make up the parameters of a model over grids."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slm_jax.errors import UserError
from slm_jax.interop import families, grid_weights
from slm_jax.interop.grid_weights import Row
from slm_jax.nn.backbone_config import BackboneConfig

LAYERS, STEPS = 2, 3
TABLE = [
    Row("norm/scale", "norm"),
    Row("layers/scale", "block.{layer}.norm"),
    Row("layers/q/kernel", "block.{layer}.step.{step}.both", range(4), 10),
    Row("layers/k/kernel", "block.{layer}.step.{step}.both", range(4, 10), 10),
    Row("head/kernel", "out", (1, 0, -1), 2),
    Row("table/embedding", "ids", (0, 0, 1), 4),
]


def like():
    shapes = {
        "norm": {"scale": (5,)},
        "layers": {
            "scale": (LAYERS, 5),
            "q": {"kernel": (LAYERS, STEPS, 5, 4)},
            "k": {"kernel": (LAYERS, STEPS, 5, 6)},
        },
        "head": {"kernel": (5, 3)},
        "table": {"embedding": (3, 5)},
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def published():
    rng = np.random.default_rng(0)
    shapes = {"norm": (5,), "out": (2, 5), "ids": (4, 5)}
    for layer in range(LAYERS):
        shapes[f"block.{layer}.norm"] = (5,)
        shapes |= {f"block.{layer}.step.{step}.both": (10, 5) for step in range(STEPS)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_layers_steps_parts_and_ids_find_their_places():
    tensors = published()
    params = grid_weights.load(TABLE, tensors, like(), "float32")
    np.testing.assert_array_equal(params["norm"]["scale"], tensors["norm"])
    for layer in range(LAYERS):
        np.testing.assert_array_equal(
            params["layers"]["scale"][layer], tensors[f"block.{layer}.norm"]
        )
        for step in range(STEPS):
            both = tensors[f"block.{layer}.step.{step}.both"]
            np.testing.assert_array_equal(params["layers"]["q"]["kernel"][layer, step], both[:4].T)
            np.testing.assert_array_equal(params["layers"]["k"]["kernel"][layer, step], both[4:].T)
    head, out = params["head"]["kernel"], tensors["out"]
    np.testing.assert_array_equal(head, np.stack([out[1], out[0], 0 * out[0]], 1))
    np.testing.assert_array_equal(params["table"]["embedding"], tensors["ids"][[0, 0, 1]])


def test_what_does_not_fit_is_named():
    tensors = published() | {"spare": np.zeros(2)}
    del tensors["block.1.step.2.both"]
    tensors["ids"] = tensors["ids"][:3]
    with pytest.raises(UserError) as error:
        grid_weights.load(TABLE[1:], tensors, like(), "float32")
    for part in (
        "missing: block.1.step.2.both, what makes norm/scale;",
        "unexpected: norm, spare;",
        "misshapen: ids (3, 5), wanted (4, 5)",
    ):
        assert part in str(error.value)


def test_a_parameter_that_the_model_lacks_makes_its_tensors_unexpected():
    wanted = {name: part for name, part in like().items() if name != "head"}
    with pytest.raises(UserError, match="unexpected: out\n"):
        grid_weights.load(TABLE, published(), wanted, "float32")


def test_a_decoder_takes_the_layers_of_a_family():
    rows = {row.ours: row.theirs for row in grid_weights.decoder("a/", "b.", families.LLAMA)}
    assert rows["a/layers/mlp/up/kernel"] == "b.layers.{layer}.mlp.up_proj.weight"
    assert rows["a/norm/scale"] == "b.norm.weight"
    assert not {"a/embedding/embedding", "a/head/kernel"} & set(rows)


def test_configurations_agree_but_for_what_is_chosen():
    sizes = {"vocab_size": 9, "width": 8, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 4}
    one = BackboneConfig(**sizes, mlp_width=7)
    grid_weights.agree("x", one, BackboneConfig(**sizes, mlp_width=7, dtype="bfloat16"))
    with pytest.raises(UserError, match=r"published x .*: mlp_width 7, wanted 6; norm_eps 1e-05"):
        grid_weights.agree("x", one, BackboneConfig(**sizes, mlp_width=6, norm_eps=1e-6))


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        grid_weights.fields(tmp_path, "csm")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        grid_weights.fields(tmp_path, "csm")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mimi"}))
    with pytest.raises(UserError, match="of type mimi, not csm"):
        grid_weights.fields(tmp_path, "csm")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "csm", "inner": {"a": 1}}))
    found = grid_weights.fields(tmp_path, "csm")
    assert found["inner"]["a"] == 1
    with pytest.raises(UserError, match=r"config\.json lacks 'b'"):
        found["inner"]["b"]
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        grid_weights.tensors(tmp_path)
