"""The one exception that users see, and the wrapper that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend: a wrong name, a missing file, a corrupt shard.

    Args:
      message: what is wrong, naming the thing (file, index, option).
      remedy: what to do about it, as a command or a sentence.
    """

    def __init__(self, message: str, remedy: str):
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}"


def run_main(main: Callable[[], None]) -> None:
    """Runs a launch binary; a UserError becomes one message on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
