"""Tests of what other libraries call: each has an environment of its own (.ci/engines). A missing one is announced."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
pytest.register_assert_rewrite("tests.engines.serving")  # whose failures are to show values too


def _missing() -> list[str]:
    folders = sorted(folder.name for folder in _HERE.iterdir() if (folder / "conftest.py").exists())
    return [name for name in folders if importlib.util.find_spec(name) is None]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the folder of a library that is not installed: its modules import it."""
    return True if any(collection_path == _HERE / name for name in _missing()) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each library whose tests did not run."""
    for name in _missing():
        terminalreporter.write_line(
            f"THE TESTS OF {name.upper()} DID NOT RUN: it is not installed (.ci/engines installs it)",
            yellow=True,
            bold=True,
        )
