"""Errors of the build. :mod:`skimattn.errors` exports them again, next to those of a call."""

from __future__ import annotations


class BuildError(RuntimeError):
    """A kernel could not be built or a built file cannot be used; the message names it and carries the log."""


class MetadataError(BuildError):
    """A metadata file or row that is damaged, truncated or was made by something else."""
