"""Everything that needs a GPU, in one command, in about four minutes; writes a summary that can be committed.

    python tests/gpu/run_all.py --summary FILE [--no-sanitizer] [--no-build] [-k EXPRESSION]

Builds the kernels, runs the cases with compute-sanitizer beside them, then the others: in several processes, but for
those that measure time, or start processes of their own. FILE gets JSON if it ends in .json, else text; both are also
printed as text.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PHASES = (
    ("cases", "test_gpu_cases.py", True),
    ("decode", "test_gpu_decode.py", True),
    ("flash_attn", "test_gpu_flash_attn.py", True),
    ("torch_ops", "test_gpu_torch_ops.py", True),
    ("large", "test_gpu_large.py", False),
    ("new_shapes", "test_gpu_new_shapes.py", False),
    ("statlog", "test_gpu_statlog.py", False),
    ("runtime", "test_gpu_runtime.py", False),
)
ANCHOR = ("anchor", "test_gpu_anchor.py", False)  # of the emulator's shared memory; through wgmma, which only SM90 has
PROCESSES = 12
PHASE_LIMIT_S = 600  # what is outside the default set is compiled on first use: on SM100 about 90 kernels of the cases


def make_importable(folder: Path) -> None:
    """Lay the package out as it is installed, for machines where it is not; child processes see it too."""
    if importlib.util.find_spec("skimattn") is None:
        package = folder / "skimattn"
        package.mkdir()
        for source in [*(ROOT / "runtime").iterdir(), ROOT / "codegen", ROOT / "templates"]:
            (package / source.name).symlink_to(source)
        sys.path.insert(0, str(folder))
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])


def this_arch() -> str:
    """The architecture of torch's current GPU, such as ``sm90``; ``LookupError`` if there are no kernels for it."""
    import torch
    from skimattn._select.dispatch import arch_of

    return arch_of(torch.cuda.get_device_capability())


def build_kernels(arch: str) -> dict[str, Any]:
    """``build.py --sm 90``, or whatever this GPU is."""
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "build.py"), "--sm", arch[2:], "--jobs", str(os.cpu_count() or 2)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    tail = [] if done.returncode == 0 else (done.stdout + done.stderr).splitlines()[-30:]
    status = "passed" if done.returncode == 0 else "failed"
    return {"phase": "build", "status": status, "seconds": round(time.monotonic() - started, 1), "output": tail}


def run_phase(phase: str, file: str, parallel: bool, expression: str, folder: Path) -> dict[str, Any]:
    """Run one test file; counts, failures and recorded figures from its JUnit report."""
    report, started = folder / f"{phase}.xml", time.monotonic()
    command = [sys.executable, "-m", "pytest", str(HERE / file), "-q", f"--junitxml={report}", "-p", "no:cacheprovider"]
    if parallel and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(PROCESSES, os.cpu_count() or 1))]
    if expression:
        command += ["-k", expression]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PHASE_LIMIT_S)
        output = (done.stdout + done.stderr).splitlines()
    except subprocess.TimeoutExpired as late:
        text = late.stdout or b""
        output = [*(text.decode(errors="replace") if isinstance(text, bytes) else text).splitlines(), "timed out"]
    result: dict[str, Any] = {"phase": phase, "seconds": round(time.monotonic() - started, 1)}
    if not report.exists():
        return {**result, "status": "failed", "output": output[-30:]}
    return {**result, **read_report(report)}


def read_report(path: Path) -> dict[str, Any]:
    """``{status, passed, failed, skipped, failures, figures}`` of a JUnit file."""
    failures, figures = [], []
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        broken = [node for node in case if node.tag in ("failure", "error")]
        kind = "failed" if broken else "skipped" if case.find("skipped") is not None else "passed"
        counts[kind] += 1
        failures += [f"{case.get('name')}: {(node.get('message') or '')[:600]}" for node in broken]
        figures += [str(item.get("value")) for item in case.iter("property")]
    status = "passed" if counts["passed"] and not counts["failed"] else "failed"
    return {"status": status, **counts, "failures": failures, "figures": figures}


def machine() -> dict[str, Any]:
    """What ran, on what."""
    import torch

    def said(*command: str) -> str:
        if shutil.which(command[0]) is None:
            return ""
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("SKIMATTN_COMMIT") or said("git", "rev-parse", "--short", "HEAD") or None,
        "changed": bool(said("git", "status", "--porcelain")),
        "gpus": names,
        "driver": driver[0] if driver else None,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }


def as_text(summary: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [", ".join(f"{name} {value}" for name, value in summary["machine"].items())]
    for row in summary["phases"]:
        counts = ", ".join(f"{row[name]} {name}" for name in ("passed", "failed", "skipped") if name in row)
        lines.append(f"{row['phase']:<10} {row['status']:<8} {row['seconds']:>6.1f} s  {counts}")
        lines += [
            f"    {text}" for text in (*row.get("figures", ()), *row.get("failures", ())[:20], *row.get("output", ()))
        ]
    for row in summary["sanitizer"]:
        lines.append(
            f"{row['tool']:<10} {row['status']}, {row['errors']} errors, {row['cases']} cases, {row['seconds']} s"
        )
        lines += [f"    {text}" for text in row["output"]]
    lines.append(f"total {summary['seconds']} s: {summary['status']}")
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace, arch: str, folder: Path) -> dict[str, Any]:
    """All phases; the summary."""
    import sanitize

    started = time.monotonic()
    phases = [] if arguments.no_build else [build_kernels(arch)]
    at = time.monotonic()
    tools = {} if arguments.no_sanitizer else sanitize.start_all(folder)
    cases, *alone = PHASES
    phases.append(run_phase(*cases, arguments.k, folder))
    reports = [sanitize.finish(tool, process, folder, at) for tool, process in tools.items()]
    if not tools:
        why = sanitize.missing() or "not wanted"
        phases.append({"phase": "sanitizer", "status": f"not run: {why}", "seconds": 0.0})
    alone += [ANCHOR] if arch == "sm90" else []
    phases += [run_phase(*phase, arguments.k, folder) for phase in alone]
    bad = [row for row in (*phases, *reports) if row["status"] != "passed" and not row["status"].startswith("not run:")]
    return {
        "machine": machine(),
        "status": "failed" if bad else "passed",
        "seconds": round(time.monotonic() - started, 1),
        "phases": phases,
        "sanitizer": reports,
    }


def main() -> int:
    """Run everything; 0 if nothing failed, 2 without a GPU that has kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summary", type=Path)
    parser.add_argument("--no-sanitizer", action="store_true")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("-k", default="", metavar="EXPRESSION")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("run_all.py: no GPU: torch sees no CUDA device; nothing was run", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        make_importable(Path(name))
        sys.path.insert(0, str(HERE))
        try:
            arch = this_arch()
        except LookupError as error:
            print(f"run_all.py: {error}; nothing was run", file=sys.stderr)
            return 2
        summary = run(arguments, arch, Path(name))
    text = as_text(summary)
    print(text, end="")
    if arguments.summary:
        as_json = arguments.summary.suffix == ".json"
        arguments.summary.write_text(json.dumps(summary, indent=1) + "\n" if as_json else text)
    return int(summary["status"] != "passed")


if __name__ == "__main__":
    sys.exit(main())
