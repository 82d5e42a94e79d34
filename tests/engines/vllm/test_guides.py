"""The guide is true: its code runs as it stands, and so does its command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .conftest import ROOT, Models, environment

_RUN = """
import sys
from pathlib import Path
from tests.helpers.guides import blocks

options = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 1024}
names = {"folder": sys.argv[1], "options": options, "prompts": ["A tile is skipped. " * 60]}
for language, code in blocks(Path(sys.argv[2])):
    if language == "python":
        exec(compile(code, "guide", "exec"), names)
"""


def test_code_and_commands_run(models: Models, tmp_path: Path) -> None:
    guide = ROOT / "docs" / "vllm.md"
    asked = [sys.executable, "-c", _RUN, str(models.cut), str(guide)]
    paths = {"PYTHONPATH": f"{ROOT}:{environment(True).get('PYTHONPATH', '')}"}
    made = subprocess.run(
        asked, env=environment(True) | paths, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert made.returncode == 0, made.stderr[-4000:]
    assert "'decode': (" in made.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "skimattn", "stats", "stats.jsonl"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0 and "self_attn.attn" in shown.stdout
