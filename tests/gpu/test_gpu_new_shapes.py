"""Ever new shapes in several processes: what a server does all day, and what crashed one in minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.gpu import gpu_arch

SCRIPT = Path(__file__).with_name("new_shapes.py")
PROCESSES, LAUNCHES = 8, 4000  # a process with the fault that this is about died after 116 to 1670


@pytest.mark.skipif(gpu_arch() != "sm90", reason="the boxes that the script knows are those of SM90")
def test_new_shapes_in_several_processes() -> None:
    command = [sys.executable, str(SCRIPT)]
    running = [
        subprocess.Popen(
            [*command, str(seed), str(LAUNCHES)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for seed in range(PROCESSES)
    ]
    ends = [(process.communicate()[0].strip(), process.returncode) for process in running]
    assert [(text.splitlines()[-1], status) for text, status in ends] == [(str(LAUNCHES), 0)] * PROCESSES, ends
