"""Every shipped gin file parses, binds existing names, and shadows nothing."""

import re

import pytest

from slm_jax import config
from slm_jax.config import GIN_DIR

FILES = sorted(GIN_DIR.rglob("*.gin"))


def test_no_package_shadows_gin_config():
    """An __init__.py would make `import gin` find this folder instead of gin-config."""
    assert not list(GIN_DIR.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(GIN_DIR).as_posix())
def test_parses_and_binds_existing_names(path):
    bindings = config._Bindings()
    bindings.read_file(path)
    assert bindings.fields or bindings.macros


@pytest.mark.parametrize("name", config.CONFIGURABLES)
def test_every_configurable_exists(name):
    assert config.configurable(name).__dataclass_params__.frozen


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(GIN_DIR).as_posix())
def test_says_what_it_is_for(path):
    assert re.match(r"# \w", path.read_text(encoding="utf-8")), "begin with a comment"


@pytest.mark.parametrize(
    "parallel", sorted((GIN_DIR / "parallel").glob("*.gin")), ids=lambda p: p.stem
)
def test_main_job_takes_every_mesh(parallel):
    job = config.load(["taste_pretrain.gin", parallel])
    assert job.parallel == config.load([parallel], root="Parallel")
    assert config.loads(config.dump(job)) == job
