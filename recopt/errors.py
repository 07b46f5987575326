"""The errors that recopt raises: every one names what was wrong with what the user gave."""

from __future__ import annotations


class RecoptError(Exception):
    """Base of all errors of recopt that bad input can cause; its text is one line for the user."""


class GraphError(RecoptError):
    """A graph that is cyclic, ill-typed, or otherwise not a valid program of its host."""


class LoadError(RecoptError):
    """A file or object that is no model that recopt can read."""


class OptionError(RecoptError):
    """An option, pass, pattern or target that does not exist or does not fit the others."""


class LowerError(RecoptError):
    """A fused operator that cannot be written for the chosen target."""


class WriteError(RecoptError, OSError):
    """A file that could not be written, for what the system says; nothing of it is left behind."""

    def __init__(self, path: object, reason: object) -> None:
        super().__init__(str(path), str(reason))
        self.errno = None

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


class VerifyError(RecoptError):
    """The rewritten model could not be run beside the original, so nothing is proved."""
