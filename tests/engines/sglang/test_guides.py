"""The guide is true: its code runs as it stands, and so does its command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .conftest import ROOT, Models, environment

_RUN = """
import sys
import torchvision_ops
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[3])
    from tests.helpers.guides import blocks

    options = {"device": "cpu", "dtype": "bfloat16", "context_length": 1024, "max_total_tokens": 2048}
    options["log_level"] = "error"
    names = {"folder": sys.argv[1], "options": options, "prompts": ["A tile is skipped. " * 60]}
    for language, code in blocks(Path(sys.argv[2])):
        if language == "python":
            exec(compile(code, "guide", "exec"), names)
"""


def test_code_and_commands_run(models: Models, tmp_path: Path) -> None:
    script = tmp_path / "guide.py"
    script.write_text(_RUN)
    asked = [sys.executable, str(script), str(models.cut), str(ROOT / "docs" / "sglang.md"), str(ROOT)]
    made = subprocess.run(asked, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[-4000:]
    assert "'decode': (" in made.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "skimattn", "stats", "stats.jsonl"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0 and "self_attn.attn" in shown.stdout
