"""The errors a call can raise, all of them before anything is launched or written."""

from __future__ import annotations

from skimattn.codegen.errors import ArgumentError, BuildError, expected

__all__ = ["ArgumentError", "BuildError", "CudaError", "NoKernelError", "expected"]


class NoKernelError(LookupError):
    """No kernel computes the call; the text names the nearest ones and the build command that would add it."""


class CudaError(RuntimeError):
    """A driver call failed; the text holds the call, the driver's name of the error and its explanation.

    ``name`` is the driver's name of the error, such as ``CUDA_ERROR_INVALID_IMAGE``; empty if it has none.
    """

    def __init__(self, text: str, name: str = "") -> None:
        """``text`` is the whole message."""
        super().__init__(text)
        self.name = name
