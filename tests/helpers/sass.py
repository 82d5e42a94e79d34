"""Machine code of a cubin, by nvdisasm, which pip has (nvidia-cuda-nvdisasm): what a kernel really consists of."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from functools import cache
from importlib import metadata
from pathlib import Path

_DISTRIBUTION = "nvidia-cuda-nvdisasm"
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)


@cache
def nvdisasm() -> str | None:
    """The disassembler's path: pip's, or one on PATH; None if there is none."""
    try:
        files = metadata.files(_DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == "nvdisasm":
            return str(Path(str(file.locate())).resolve())
    return shutil.which("nvdisasm")


def instructions(cubin: bytes) -> Counter[str]:
    """How often each instruction occurs, by its name without modifiers (``UTCHMMA``, ``LDTM``, ...)."""
    program = nvdisasm()
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([program, "-c", str(path)], capture_output=True, text=True, check=True)
    return Counter(_LINE.findall(done.stdout))
