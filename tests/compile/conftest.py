"""What tests of compilers share."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest


@pytest.fixture
def held_mb() -> int:
    """What this process holds before a test, which the peak of something compiled inside it counts too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20
