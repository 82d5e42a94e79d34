"""The guides under ``docs/``: their code, and which library it calls."""

from __future__ import annotations

import re
from pathlib import Path

from .standin import ROOT

GUIDES = sorted((ROOT / "docs").glob("*.md"))
OF_ENGINES = {"transformers": ("calibrate.md", "transformers.md")}  # run by tests/engines


def blocks(guide: Path) -> list[tuple[str, str]]:
    """Language and code of the fenced blocks, in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def without_engine() -> list[Path]:
    """Guides whose code needs no library beside torch."""
    named = [name for names in OF_ENGINES.values() for name in names]
    return [guide for guide in GUIDES if guide.name not in named]
