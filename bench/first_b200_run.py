"""Everything that a first run of the SM100 kernels on a B200 must check, in order, with a verdict.

    python bench/first_b200_run.py --summary first.json     # on the B200, from a checkout; about half an hour
    python bench/first_b200_run.py --dry                    # anywhere: what can be tried on the emulator

The kernels were written without the hardware: what is known of them comes from an emulator, and what the emulator knows
of tcgen05 from the ISA's text. So single products come first, then chains, then kernels, then speed. Each stage runs in
a process of its own with a time limit, since a wrong barrier hangs; after a failed stage later ones would say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Found = dict[str, Any]  # "problems": one line each, empty = passed; whatever else the stage has to say
ORDER_ROUNDS = 200
PEERS = ("cudnn", "fa4")


def environment(dry: bool) -> Found:
    """Is this the machine that the kernels are for, and what is on it."""
    machine, torch = import_module("bench.machine"), import_module("torch")
    found: Found = {"versions": machine.versions(), "commit": machine.commit(), "problems": []}
    if dry:
        return found
    if not torch.cuda.is_available():
        return {**found, "problems": ["torch sees no GPU"]}
    capability = torch.cuda.get_device_capability()
    found |= {"gpu": machine.gpu_state(), "capability": list(capability)}
    if capability != (10, 0):
        found["problems"].append(f"compute capability: expected 10.0 (got {capability[0]}.{capability[1]})")
    return found


def probes(dry: bool) -> Found:
    """Single products and chains against the numpy model: every layout, type and width; tensor memory; accumulation."""
    model = import_module("tests.helpers.probes")
    chosen = [program for program in model.programs() if not program.name.startswith("order")]
    return _run_programs(chosen[::7] if dry else chosen, dry)


def issue_order(dry: bool) -> Found:
    """Do products of one thread execute in the order of issue? The kernels write S over P right behind P.V."""
    model, runner = import_module("tests.helpers.probes"), import_module("tests.helpers.probe_run")
    chosen = [program for program in model.programs() if program.name.startswith("order")]
    found = _run_programs(chosen, dry)
    for seed in range(0 if dry else ORDER_ROUNDS):
        for part in _by_size(chosen * 8):  # more CTAs than one
            for name, cells in runner.on_gpu(part, seed).items():
                found["problems"].append(f"round {seed}: {name}: {cells} cells differ")
        if found["problems"]:
            break
    return {**found, "rounds": 0 if dry else ORDER_ROUNDS}


def _by_size(chosen: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Programs of one element size, as a launch takes them."""
    wide, narrow = ([p for p in chosen if (p.dtype == "e4m3") == eight_bit] for eight_bit in (False, True))
    return [tuple(part) for part in (wide, narrow) if part]


def _run_programs(chosen: Sequence[Any], dry: bool) -> Found:
    runner = import_module("tests.helpers.probe_run")
    wrong: dict[str, int] = {}
    for part in _by_size(chosen):
        for start in range(0, len(part), 8):
            wrong |= (runner.on_emulator if dry else runner.on_gpu)(part[start : start + 8])
    shows = {program.name: program.shows for program in chosen}
    agree = {what: sum(shows[name] == what for name in shows if name not in wrong) for what in set(shows.values())}
    total = {what: list(shows.values()).count(what) for what in agree}
    problems = [f"{name} ({shows[name]}): {cells} cells of tensor memory differ" for name, cells in wrong.items()]
    return {"agree": {what: f"{agree[what]} of {total[what]}" for what in sorted(agree)}, "problems": problems}


def build(dry: bool) -> Found:
    """The default set, with NVRTC."""
    command = [sys.executable, str(ROOT / "build.py"), "--sm", "100", "--jobs", str(os.cpu_count() or 2)]
    done = _command([*command, "--dry-run"] if dry else command)
    lines = (done.stdout + done.stderr).splitlines()
    return {"output": lines[-3:], "problems": [] if done.returncode == 0 else ["build.py failed", *lines[-30:]]}


def checked_kernels(dry: bool) -> Found:
    """The first calls once more, compiled with ptxas's checks of every access to tensor memory, which trap."""
    toolchain: Any = import_module("skimattn.codegen.toolchain")
    ptxas: Any = import_module("skimattn.codegen.ptxas")
    plain = toolchain.Toolchain.options
    toolchain.Toolchain.options = lambda self, arch: (*plain(self, arch), "--ptxas-options=-g-tmem-access-check")
    ptxas.allowed = lambda spec: ("spills<=1000000",)  # the checks take registers
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= dict.fromkeys(("SKIMATTN_KERNELS", "SKIMATTN_CACHE"), folder)
        if dry:
            spec = import_module("skimattn.codegen.sets").specs("smoke", archs=["sm100"])[0]
            _, cubin = import_module("skimattn.codegen.jit").compile_spec(spec)
            return {
                "bytes": len(cubin),
                "problems": [] if len(cubin) > 200_000 else ["the checks were not compiled in"],
            }
        return first_kernels(dry, 8)


def first_kernels(dry: bool, count: int = 24) -> Found:
    """A few calls that meet most features, one after the other, against the oracle; exact skip maps and counts."""
    catalogue, runner = import_module("tests.helpers.catalogue"), import_module("tests.helpers.run")
    checks, decoding = import_module("tests.helpers.check"), import_module("tests.helpers.decode_cases")
    prefill = catalogue.covering_cases(1 if dry else count, "sm100")
    decode = catalogue.feature_covering(decoding.decode_pairwise_cases("sm100"))[: 1 if dry else count]
    problems, cases = [], (*prefill, *decode)
    for case in cases:
        print(f"case {case.name} {case.spec.name}", flush=True)  # what hangs is the last one named
        try:
            result, held = runner.run_case(case, "emulator" if dry else "gpu")
            checks.check(result, held)
        except Exception as error:  # a wrong answer, or what the driver says
            problems.append(f"{case.name}: {type(error).__name__}: {str(error)[:500]}")
    return {"cases": len(cases), "problems": problems}


def every_case(dry: bool) -> Found:
    """tests/gpu/run_all.py: all cases, properties, runtime tests, and compute-sanitizer where there is one."""
    if dry:
        return {"problems": [], "skipped": "needs a GPU"}
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        done = _command([sys.executable, str(ROOT / "tests/gpu/run_all.py"), "--no-build", "--summary", str(summary)])
        if not summary.exists():
            return {"problems": ["run_all.py wrote no summary", *(done.stdout + done.stderr).splitlines()[-20:]]}
        found = json.loads(summary.read_text())
    failures = [text for phase in found["phases"] for text in (*phase.get("failures", ()), *phase.get("output", ()))]
    tools = [f"{row['tool']}: {row['status']}" for row in found["sanitizer"] if row["status"].startswith("failed")]
    failed = found["status"] != "passed"
    return {"summary": found, "problems": [*tools, *failures[:20]] or (["run_all.py failed"] if failed else [])}


def timing(dry: bool) -> Found:
    """Speed beside cuDNN and FlashAttention-4 where they are installed. No figure here is a reason to fail."""
    options = ["--seqlens", "16384", "--sparsities", "0", "0.5", "0.9", "--peers", *PEERS]
    return _bench(dry, "prefill", options, "tflops")


def decode_timing(dry: bool) -> Found:
    """Decode steps, dense and with skipped tiles; peers of other GPUs are left out. No figure is a reason to fail."""
    return _bench(dry, "decode", ["--only", "b64 16k", "b16 8k", "b1 128k", "--peers"], "us")


def _bench(dry: bool, command: str, options: Sequence[str], figure: str) -> Found:
    """What ``python -m bench COMMAND`` measures; wrong outputs are problems."""
    if dry:
        return {"problems": [], "skipped": "needs a GPU"}
    with tempfile.TemporaryDirectory() as folder:
        done = _command([sys.executable, "-m", "bench", command, *options, "--out", folder])
        files = list(Path(folder).glob("*.json"))
        if not files:
            return {"problems": [f"bench {command} wrote no results", *(done.stdout + done.stderr).splitlines()[-20:]]}
        document = json.loads(files[0].read_text())
    wrong = [check for case in document["cases"] for check in case["checks"] if not check["passed"]]
    problems = [f"wrong output: {check}" for check in wrong]
    if not document["finished"]:  # its file is saved after every case, and when a kernel fails
        problems += [f"bench {command} broke off", *(done.stdout + done.stderr).splitlines()[-20:]]
    rows = [[case["case"], row["name"], row[figure]] for case in document["cases"] for row in case["rows"]]
    return {figure: rows, "document": document, "problems": problems}


def _command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@dataclass(frozen=True)
class Stage:
    """One part of the run; after ``limit_s`` seconds it counts as hung. ``hint``: what a failure means."""

    run: Callable[[bool], Found]
    limit_s: float
    hint: str

    @property
    def name(self) -> str:
        """As ``--stage`` takes it."""
        return self.run.__name__


STAGES = (
    Stage(environment, 120, "another machine is needed"),
    Stage(probes, 600, "the model of descriptors or tensor memory is wrong: tests/helpers/placement.py, probes.py"),
    Stage(issue_order, 600, "set ordered_products = False in codegen/tiles/sm100_prefill.py: P.V is then waited for"),
    Stage(build, 1800, "the compiler differs from the one that CI uses"),
    Stage(checked_kernels, 600, "a trap names the access; a kernel that passes without checks only hides it"),
    Stage(first_kernels, 900, "products are right and kernels are not: the last case named is where to look"),
    Stage(every_case, 3600, "rerun one case with: python -m pytest tests/gpu/test_gpu_cases.py -k NAME"),
    Stage(timing, 1800, "outputs were right before and are wrong at this size"),
    Stage(decode_timing, 1800, "decode was right before and is wrong at this size"),
)


def run_stage(stage: Stage, dry: bool) -> Found:
    """A stage in a process of its own: ``{stage, status, seconds, ...}``; status is passed, failed or skipped."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--stage", stage.name, "--result", str(result)]
        # A session of its own: what the stage started, and hangs with it, ends with it and leaves the GPU.
        process = subprocess.Popen(
            [*command, *(["--dry"] if dry else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            tail = process.communicate(timeout=stage.limit_s)[0].splitlines()[-20:]
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as ended:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(ended, KeyboardInterrupt):
                raise
            tail = [f"not done after {stage.limit_s:.0f} s: hung", *process.communicate()[0].splitlines()[-5:]]
        found: Found = json.loads(result.read_text()) if result.exists() else {"problems": tail or ["no result"]}
    status = "failed" if found["problems"] else "skipped" if "skipped" in found else "passed"
    return {"stage": stage.name, "status": status, "seconds": round(time.monotonic() - started, 1), **found}


def run_all(stages: Sequence[Stage], dry: bool) -> Found:
    """All stages up to the first that fails; the summary."""
    rows: list[Found] = []
    for stage in stages:
        if any(row["status"] == "failed" for row in rows):
            rows.append({"stage": stage.name, "status": "not run", "seconds": 0.0, "problems": []})
            continue
        rows.append(run_stage(stage, dry))
        print(f"{stage.name:<14} {rows[-1]['status']:<8} {rows[-1]['seconds']:>7.1f} s", flush=True)
        for problem in rows[-1]["problems"][:20]:
            print(f"    {problem}", flush=True)
    return {"dry": dry, "verdict": verdict(stages, rows), "stages": rows}


def verdict(stages: Sequence[Stage], rows: Sequence[Found]) -> str:
    """One sentence."""
    for stage, row in zip(stages, rows, strict=True):
        if row["status"] == "failed":
            return f"failed at {stage.name}, {len(row['problems'])} problems; {stage.hint}"
    skipped = [row["stage"] for row in rows if row["status"] == "skipped"]
    if skipped:
        return f"passed as far as it can be tried here; not tried: {', '.join(skipped)}"
    return "passed: the SM100 kernels run on this GPU and are right in every case; speeds are in the stage timing"


def stage_here(name: str, dry: bool) -> Found:
    """A stage in this process, which finds the checkout's packages also where skimattn is not installed."""
    sys.path.insert(0, str(ROOT / "tests" / "gpu"))
    with tempfile.TemporaryDirectory() as folder:
        import_module("run_all").make_importable(Path(folder))
        return next(stage for stage in STAGES if stage.name == name).run(dry)


def main(arguments: Sequence[str]) -> int:
    """Run all stages, or one of them in this process; exit status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on the emulator, without a GPU")
    parser.add_argument("--summary", type=Path, help="where to write everything as JSON")
    parser.add_argument("--stage", choices=[stage.name for stage in STAGES], help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        options.result.write_text(json.dumps(stage_here(options.stage, options.dry), default=str))
        return 0
    summary = run_all(STAGES, options.dry)
    if options.summary:
        options.summary.write_text(json.dumps(summary, indent=1, default=str) + "\n")
    print(f"VERDICT: {summary['verdict']}")
    return int(any(row["status"] == "failed" for row in summary["stages"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
