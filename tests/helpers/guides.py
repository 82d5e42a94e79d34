"""Runs what stands in a guide."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from skimattn.tools.cli import main


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and code of the fenced blocks, in their order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_guide(guide: Path, names: dict[str, Any]) -> None:
    """Run its Python, which shares ``names``, and its commands, which are all of ``skimattn``."""
    for language, code in blocks(guide.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, guide.name, "exec"), names)
            continue
        for line in code.splitlines():
            command, *words = shlex.split(line)
            assert command == "skimattn"
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, result.output
