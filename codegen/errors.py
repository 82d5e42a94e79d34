"""Errors of the build, and the form of a refusal. :mod:`skimattn.errors` exports them, next to those of a call."""

from __future__ import annotations


class ArgumentError(ValueError):
    """An argument is not acceptable; the text names it, what was expected and what was given."""


class BuildError(RuntimeError):
    """A kernel could not be built or a built file cannot be used; the message names it and carries the log."""


class MetadataError(BuildError):
    """A metadata file or row that is damaged, truncated or was made by something else."""


def expected(argument: str, wanted: str, got: object) -> ArgumentError:
    """The one form of every refusal: ``argument: expected wanted (got got)``."""
    return ArgumentError(f"{argument}: expected {wanted} (got {got})")
