"""Models that SGLang reads, and runs of it that several tests look at. An engine takes half a minute to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..smollm2 import ROOT, Models, export_both
from .stubs import torchvision_ops  # noqa: F401  # transformers wants it

__all__ = ["ROOT", "Models"]
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return export_both(tmp_path_factory.mktemp("models"))


def environment(**variables: str) -> dict[str, str]:
    """Of a process that runs SGLang on a CPU."""
    own = ("SKIMATTN_SGLANG", "SKIMATTN_CHANNEL")
    base = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    paths = os.pathsep.join(filter(None, (str(HERE / "stubs"), os.environ.get("PYTHONPATH"))))
    base |= {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return base | {"OMP_NUM_THREADS": "1"} | variables  # more wait for each other where others compute too


def attempt(jobs: list[dict[str, Any]], folder: Path, **variables: str) -> tuple[int, str]:
    """Exit status and output of jobs, one after the other in one process: see :mod:`.run`. Results: ``out.json``."""
    asked, out, log = folder / "jobs.json", folder / "out.json", folder / "log.txt"
    asked.write_text(json.dumps(jobs))
    words = [sys.executable, str(HERE / "run.py"), str(asked), str(out)]
    with log.open("w") as shown:  # no pipe: a process that SGLang leaves behind would keep it open
        made = subprocess.run(
            words, env=environment(**variables), stdout=shown, stderr=subprocess.STDOUT, timeout=900, check=False
        )
    return made.returncode, log.read_text()


def run(jobs: list[dict[str, Any]], folder: Path, **variables: str) -> list[dict[str, Any]]:
    """Results of jobs."""
    status, output = attempt(jobs, folder, **variables)
    assert status == 0, output[-8000:]
    found: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
    return found
