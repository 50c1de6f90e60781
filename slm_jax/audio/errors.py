"""What can be wrong with an audio file."""

from __future__ import annotations

from slm_jax.errors import UserError


class AudioError(UserError):
    """One file that cannot be used. Pipelines quarantine it under `reason` and go on.

    Args:
      reason: one of
        "missing": no such file, or it cannot be opened;
        "empty": no bytes, or no samples;
        "unreadable": not audio, or corrupt;
        "truncated": less audio than the file's own header declares;
        "non-finite": NaN or infinite samples;
        "unsupported": sound audio, but the chosen decoder cannot read this format.
      message: what is wrong, naming the file.
      remedy: what to do about it.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        remedy: str = "replace the file by a sound copy, or remove it",
    ):
        super().__init__(message, remedy)
        self.reason = reason
        self.args = (reason, message, remedy)  # what pickle rebuilds it from, across processes
