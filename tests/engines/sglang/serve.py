"""``python -m sglang.launch_server``, with a stub that every process it spawns imports too."""

from __future__ import annotations

import runpy

import torchvision_ops  # noqa: F401

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
