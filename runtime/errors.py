"""The errors a call can raise, all of them before anything is launched or written."""

from __future__ import annotations

from skimattn.codegen.errors import BuildError

__all__ = ["ArgumentError", "BuildError", "CudaError", "NoKernelError"]


class ArgumentError(ValueError):
    """An argument is not acceptable; the text names it, what was expected and what was given."""


class NoKernelError(LookupError):
    """No kernel computes the call; the text names the nearest ones and the build command that would add it."""


class CudaError(RuntimeError):
    """A driver call failed; the text holds the call, the driver's name of the error and its explanation."""


def expected(argument: str, wanted: str, got: object) -> ArgumentError:
    """The one form of every refusal: ``argument: expected wanted (got got)``."""
    return ArgumentError(f"{argument}: expected {wanted} (got {got})")
