"""Jobs for GPUs that are not here."""

import aot_pairs
import pytest

pytestmark = pytest.mark.aot


@pytest.mark.parametrize("path", aot_pairs.of("gpu"), ids=lambda path: path.stem)
def test_pair_fits_and_sends_what_it_did(path, tmp_path):
    aot_pairs.check(path, tmp_path)
