"""The arrows between packages, and what may never be imported."""

import ast
import subprocess
import sys

import pytest

from slm_jax.paths import REPO

BASE = {"errors", "paths", "streams"}
# Higher may import lower and its equals, never the other way round.
LEVELS = [
    BASE,
    {"nn"},
    {"layouts", "interop", "audio"},
    {"models", "data", "tokenizers"},
    {
        "training",
        "decoding",
        "evaluation",
        "serving",
        "posttraining",
        "planning",
        "config",
        "config_types",
        "config_dump",
    },
    {"launch", "data_pipelines"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
TOOLS = {"slm_jax/layouts/show.py"}  # command-line tools that read gin stand at the edge
FORBIDDEN = {"tensorflow", "tensorflow_io", "seqio", "torch", "transformers", "jaxlib.mlir"}


def source_files():
    for top in ("slm_jax", "data_pipelines", "launch"):
        yield from sorted((REPO / top).rglob("*.py"))


def part(path):
    """The package of a file: the folder below slm_jax, or the module, or launch, data_pipelines."""
    if path.relative_to(REPO).as_posix() in TOOLS:
        return "launch"
    parts = path.relative_to(REPO).with_suffix("").parts
    return parts[1] if parts[0] == "slm_jax" else parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def own_imports(path):
    """(package, line) of each import of the project's own."""
    for name, line in imports(path):
        top, *rest = name.split(".")
        if top == "slm_jax" and rest:
            yield rest[0], line
        elif top in ("data_pipelines", "launch"):
            yield top, line


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(REPO)))
def test_no_arrow_points_up(path):
    own = part(path)
    if own == "__init__":
        return
    for package, line in own_imports(path):
        assert LEVEL[package] <= LEVEL[own], f"{path}:{line}: {own} imports {package}"
        if own == "layouts":
            assert package in BASE | {"layouts"}, f"{path}:{line}: layouts imports {package}"


def test_no_two_packages_import_each_other():
    arrows = set()
    for path in source_files():
        arrows |= {(part(path), package) for package, _ in own_imports(path)}
    mutual = {(a, b) for a, b in arrows if a < b and (b, a) in arrows}
    assert not mutual


@pytest.mark.parametrize("path", sorted((REPO / "slm_jax").rglob("*.py")), ids=lambda p: p.name)
def test_library_imports_no_other_framework(path):
    if path.name == "tfio_worker.py":  # runs in an interpreter of its own
        return
    for name, line in imports(path):
        assert not {name, name.split(".")[0]} & FORBIDDEN, f"{path}:{line}: imports {name}"


def test_train_process_holds_no_other_framework():
    """But for PyTorch, which tensorboardX imports by itself where it is installed."""
    code = (
        "import sys; sys.path.insert(0, 'launch'); import train;"
        "found = {'tensorflow', 'seqio', 'transformers', 'tensorflow_io'} & set(sys.modules);"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, timeout=600)
