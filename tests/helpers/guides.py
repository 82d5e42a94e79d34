"""The guides under ``docs/``: their code, which library it calls, and how it is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from skimattn.tools.cli import main

from .standin import ROOT

GUIDES = sorted((ROOT / "docs").glob("*.md"))
OF_ENGINES = {  # run by tests/engines
    "diffusers": ("diffusers.md",),
    "sglang": ("sglang.md",),
    "transformers": ("calibrate.md", "evaluate.md", "transformers.md"),
    "vllm": ("vllm.md",),
}


def blocks(guide: Path) -> list[tuple[str, str]]:
    """Language and code of the fenced blocks, in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def without_engine() -> list[Path]:
    """Guides whose code needs no library beside torch."""
    named = [name for names in OF_ENGINES.values() for name in names]
    return [guide for guide in GUIDES if guide.name not in named]


def run_guide(guide: Path, names: dict[str, Any], words_for: Callable[[list[str]], list[str]] = list) -> None:
    """Run its Python, which shares ``names``, and its commands (``bash``), which are all of ``skimattn``.

    What stands in ``sh`` needs more than one engine's environment, and is run elsewhere. ``words_for`` may change the
    words of a command, such as its sizes.
    """
    for language, code in blocks(guide):
        if language == "python":
            exec(compile(code, guide.name, "exec"), names)
            continue
        if language == "sh":
            continue
        for line in code.splitlines():
            command, *words = shlex.split(line)
            assert command == "skimattn"
            result = CliRunner().invoke(main, words_for(words))
            assert result.exit_code == 0, f"{line}: {result.output}"
