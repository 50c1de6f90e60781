"""Equal batches, equal digests, however they lie; any change is seen."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from slm_jax.training.digest import digest


def batch():
    draw = np.random.default_rng(0)
    return {
        "tokens": draw.integers(0, 100, (8, 3, 16), dtype=np.int32),
        "vectors": draw.standard_normal((8, 16, 2)).astype(np.float32),
        "mask": draw.random((8, 16)) < 0.5,
    }


def test_the_same_on_one_device_and_on_eight():
    one = int(jax.jit(digest)(batch()))
    for shape in ((8, 1), (4, 2)):
        mesh = jax.make_mesh(shape, ("data", "context"), axis_types=(AxisType.Auto,) * 2)
        rows = jax.device_put(batch(), NamedSharding(mesh, P("data")))
        assert int(jax.jit(digest)(rows)) == one


@pytest.mark.parametrize("name", ["tokens", "vectors", "mask"])
def test_every_change_is_seen(name):
    def swapped(rows):
        rows[name][[0, 1]] = rows[name][[1, 0]]

    def changed(rows):
        rows[name][3, 2] = rows[name][3, 2] == 0

    def moved(rows):
        rows[name][:] = np.roll(rows[name], 1, axis=-1)

    found = {int(digest(batch()))}
    for change in (swapped, changed, moved):
        rows = batch()
        change(rows)
        found.add(int(digest(rows)))
    assert len(found) == 4
