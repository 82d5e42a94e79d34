"""Where built kernels lie, and which command builds them: a checkout has ``build.py``, an installed package has not."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from . import variables

VARIABLE = "SKIMATTN_KERNELS"  # a folder with metadata.json
_FOLDER = "generated"


def checkout() -> Path | None:
    """The checkout that this runs from; None of an installed package."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "build.py").is_file() else None


def folder() -> Path | None:
    """Where calls look for built kernels: ``SKIMATTN_KERNELS``, or ``generated`` of the checkout that this runs from.

    Raises:
        ArgumentError: ``SKIMATTN_KERNELS`` names a folder that is not there.
    """
    return variables.folder(VARIABLE) or _of_checkout()


def default_output() -> Path:
    """Where builds go unless they are told: where calls look, be the folder there or not, or else ``./generated``."""
    return variables.path(VARIABLE) or _of_checkout() or Path(_FOLDER).absolute()


def _of_checkout() -> Path | None:
    root = checkout()
    return None if root is None else root / _FOLDER


def is_found(built: Path) -> bool:
    """Whether calls look in ``built``, as things are set now."""
    looked = variables.path(VARIABLE) or _of_checkout()
    return looked is not None and looked.resolve() == built.resolve()


def setting(built: Path) -> str:
    """What makes calls look in ``built``, for a shell."""
    return f"export {VARIABLE}={shlex.quote(str(built.absolute()))}"


def command() -> str:
    """The command that builds kernels here, for a shell in the working folder."""
    root = checkout()
    if root is None:
        return "skimattn-build"
    with suppress(OSError):  # of a working folder that was removed
        if root.samefile("."):
            return "python build.py"
    return f"python {shlex.quote(str(root / 'build.py'))}"
