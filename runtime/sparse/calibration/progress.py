"""How far a calibration is: told to a function, or shown as a bar where rich is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, str], None]  # done, of how many, what is being done


def silent(done: int, total: int, what: str) -> None:
    """Tell nobody."""
    del done, total, what


@contextmanager
def shown(wanted: bool | Progress) -> Iterator[Progress]:
    """Whom to tell: the function that was given; a bar (True; nobody without rich or a terminal); nobody (False)."""
    bar = _bar() if wanted is True else None
    if bar is None:
        yield wanted if callable(wanted) else silent
        return
    with bar:
        task = bar.add_task("calibration", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def _bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ModuleNotFoundError:
        return None
    console = Console(stderr=True)  # results go to standard output
    return Bar(transient=True, console=console) if console.is_terminal else None
