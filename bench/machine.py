"""What the numbers were measured on and with: GPU, clocks, versions, commit."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

COMMIT_VARIABLE = "SKIMATTN_COMMIT"  # for a tree that was copied without its .git
_QUERY = {
    "name": "gpu",
    "driver_version": "driver",
    "clocks.sm": "sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
}
_DISTRIBUTIONS = ("nvidia-cuda-nvrtc", "flash-attn-4", "flashinfer-python", "nvidia-cutlass-dsl", "triton")
_LOAD_MS = 600.0  # of work enqueued before the clocks are read, so that they are read under it


def parse_smi(text: str) -> dict[str, object]:
    """A line of ``nvidia-smi --query-gpu`` as named values, numbers where they are numbers."""
    values = [value.strip() for value in text.strip().split(",")]
    if len(values) != len(_QUERY):
        raise ValueError(f"nvidia-smi: expected {len(_QUERY)} values (got {text.strip()!r})")
    numeric = re.compile(r"-?\d+(\.\d+)?")
    return {
        name: float(value) if name not in ("gpu", "driver") and numeric.fullmatch(value) else value
        for name, value in zip(_QUERY.values(), values, strict=True)
    }


def gpu_state() -> dict[str, object]:
    """Name, driver, clocks, power and temperature of torch's current device; a reason if they cannot be read."""
    try:
        import torch

        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(_QUERY)}"]
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=30
        )
        return parse_smi(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, AssertionError, AttributeError, RuntimeError) as error:
        return {"unknown": f"{type(error).__name__}: {error}"}


def state_under_load(call: Callable[[], object], milliseconds: float) -> dict[str, object]:
    """The state of the GPU while it repeats ``call``, which takes that many milliseconds."""
    import torch

    for _ in range(max(1, math.ceil(_LOAD_MS / milliseconds))):
        call()
    state = gpu_state()
    torch.cuda.synchronize()
    return {name: state[name] for name in state if name not in ("gpu", "driver", "power_limit_w")}


def versions() -> dict[str, str | None]:
    """Versions of what takes part; None for what is not installed."""
    import skimattn
    import torch

    cudnn: Any = torch.backends.cudnn
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(cudnn.version()) if cudnn.is_available() else None,
        "skimattn": skimattn.__version__,
    }
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit of this tree, ``-dirty`` if files differ from it; from the environment where there is no git."""
    if named := os.environ.get(COMMIT_VARIABLE):
        return named
    try:
        head, changes = (_git(*arguments) for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("-dirty" if changes else "")


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
