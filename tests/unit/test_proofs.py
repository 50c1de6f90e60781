"""The tests that docs/training.md names as proofs exist."""

import re

from slm_jax.paths import REPO

NAMED = re.compile(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)?(?:::(test_\w+))?`")


def test_every_test_named_in_the_table_exists():
    text = (REPO / "docs" / "training.md").read_text(encoding="utf-8")
    named, path = [], None
    for file, test in NAMED.findall(text[text.index("## What is proved") :]):
        if file:
            path = REPO / "tests" / (file if "/" in file else f"unit/{file}")
        if file or test:
            named.append((path, test))
    assert len(named) > 50
    for path, test in named:
        assert path.is_file(), path
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), (path, test)
