"""Models that vLLM reads, and runs of it that several tests look at. A run takes about a minute on two idle cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..smollm2 import ROOT, Models, export_both

__all__ = ["ROOT", "Models"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return export_both(tmp_path_factory.mktemp("models"))


def environment(ours: bool) -> dict[str, str]:
    """Of a process that runs vLLM on a CPU, with its own back end or with ours."""
    base = {
        name: value for name, value in os.environ.items() if not name.startswith(("SKIMATTN_VLLM", "SKIMATTN_CHANNEL"))
    }
    return base | {
        "SKIMATTN_VLLM_CPU": str(int(ours)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # more wait for each other where others compute too
    }


def run(jobs: list[dict[str, Any]], folder: Path, *, ours: bool, **variables: str) -> list[dict[str, Any]]:
    """Results of jobs, one after the other in one process: see :mod:`.run`."""
    asked, out = folder / "jobs.json", folder / "out.json"
    asked.write_text(json.dumps(jobs))
    script = Path(__file__).with_name("run.py")
    made = subprocess.run(
        [sys.executable, str(script), str(asked), str(out)],
        env=environment(ours) | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-6000:]
    found: list[dict[str, Any]] = json.loads(out.read_text())
    return found
