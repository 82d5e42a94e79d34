"""Runs a covering subset of the cases under compute-sanitizer: memcheck, racecheck and synccheck.

    python tests/gpu/sanitize.py [memcheck racecheck synccheck] [--cases N]

Each tool watches a child process (``--child``) that runs the cases and checks them against the oracle.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = shutil.which("compute-sanitizer") or str(
    Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/compute-sanitizer"
)
TOOLS = ("memcheck", "racecheck", "synccheck")
CASES = {"memcheck": 12, "racecheck": 6, "synccheck": 8}
LIMIT_S = float(os.environ.get("SKIMATTN_SANITIZER_LIMIT_S", "200"))
_FOUND, _LINES, _LAST_LINES = 9, 25, 10


def command(tool: str, cases: int) -> list[str]:
    """The line that runs the child under a tool."""
    options = ["--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "20"]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]  # torch probes the driver for what it may lack
    return [PROGRAM, *options, sys.executable, str(Path(__file__).resolve()), "--child", "--cases", str(cases)]


def start(tool: str, cases: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a tool that logs to ``folder``, for :func:`finish` to read."""
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor has bounds of its own
    with (folder / f"{tool}.log").open("wb") as log:
        return subprocess.Popen(
            command(tool, cases),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )


def missing() -> str:
    """Why no tool can run; empty if they can."""
    return "" if Path(PROGRAM).exists() else f"there is no {PROGRAM}"


def start_all(folder: Path) -> dict[str, subprocess.Popen[bytes]]:
    """Start every tool on its usual number of cases; none if they are missing."""
    return {} if missing() else {tool: start(tool, CASES[tool], folder) for tool in TOOLS}


def finish(tool: str, process: subprocess.Popen[bytes], folder: Path, started: float) -> dict[str, Any]:
    """Wait for a tool: ``{tool, status, errors, cases, seconds, output}``; status is passed, failed or not run."""
    over = False
    try:
        process.wait(timeout=max(1.0, LIMIT_S - (time.monotonic() - started)))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the tool and the child it watches
        process.wait()
        over = True
    output = (folder / f"{tool}.log").read_text(errors="replace")
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", output)
    ran = re.findall(r"^ran (\d+) cases$", output, re.MULTILINE)
    errors = int(summary[-1]) if summary else None
    passed = process.returncode == 0 and errors == 0 and bool(ran)
    status = "passed" if passed else f"failed: not done after {LIMIT_S} s" if over else "failed"
    if "Device not supported" in output:
        status = "not run: compute-sanitizer does not support this machine"
    return {
        "tool": tool,
        "status": status,
        "errors": errors,
        "cases": int(ran[-1]) if ran else output.count("\ncase "),
        "seconds": round(time.monotonic() - started, 1),
        "output": [] if passed else excerpt(output.splitlines()),
    }


def excerpt(lines: list[str]) -> list[str]:
    """What a tool found first, since the rest follows from it, and how the run ended."""
    found = [number for number, line in enumerate(lines) if line.startswith(("=========", "case "))]
    chosen = {*found[:_LINES], *range(max(0, len(lines) - _LAST_LINES), len(lines))}
    return [lines[number] for number in sorted(chosen)]


def child(count: int) -> None:
    """Run the cases in this process."""
    from tests.helpers.catalogue import covering_cases
    from tests.helpers.check import check
    from tests.helpers.gpu import gpu_arch
    from tests.helpers.run import run_case

    cases = covering_cases(count, gpu_arch())
    for case in cases:
        print(f"case {case.name} {case.spec.name}", flush=True)
        result, held = run_case(case, "gpu")
        check(result, held)
    print(f"ran {len(cases)} cases", flush=True)


def main() -> int:
    """Run the named tools side by side; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", default=TOOLS)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.child:
        child(arguments.cases)
        return 0
    if missing():
        print(f"sanitize.py: {missing()}", file=sys.stderr)
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = {tool: start(tool, arguments.cases or CASES[tool], folder) for tool in arguments.tools}
        reports = [finish(tool, process, folder, started) for tool, process in running.items()]
    for report in reports:
        print(f"{report['tool']}: {report['status']}, {report['errors']} errors, {report['cases']} cases")
        print("\n".join(report["output"]))
    return int(any(report["status"] != "passed" for report in reports))


if __name__ == "__main__":
    sys.exit(main())
