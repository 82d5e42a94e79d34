"""The build itself, on stand-in kernels: what is compiled when, and what survives damage, kills and company."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from skimattn.codegen import emit, metadata, pipeline, ptxas, sets
from skimattn.codegen.files import TEMPORARY, locked

from tests.helpers import standin

MASKS = ("full", "causal", "window")
ONLY = ("--sm", "90", "--only", "phase=prefill", "dtype=bf16", "head_dim=64", "skip=dense", "paged=false")
ONLY += ("mask=" + ",".join(MASKS),)
_PLAIN = {"phase": ["prefill"], "dtype": ["bf16"], "head_dim": [64], "skip": ["dense"], "paged": [False]}
SPECS = sets.specs("default", {**_PLAIN, "mask": MASKS}, ["sm90"])  # type: ignore[dict-item]
CAUSAL = next(spec for spec in SPECS if spec.mask == "causal")


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    return standin.write_templates(tmp_path / "templates")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def build(out: Path, templates: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return standin.run(*ONLY, "--out", out, *more, templates=templates)


def summary(done: subprocess.CompletedProcess[str]) -> str:
    """``compiled, up to date, failed`` of a build."""
    line = next(line for line in done.stdout.splitlines() if " up to date, " in line)
    return line.split(" in ")[0]


def products(out: Path) -> dict[str, bytes]:
    """What must be the same on every run: sources, headers, cubins, metadata."""
    kinds = (".cu", ".cuh", ".cubin")
    paths = [path for path in out.rglob("*") if path.suffix in kinds or path.name == "metadata.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_build_leaves_sources_cubins_and_metadata(out: Path, templates: Path) -> None:
    done = build(out, templates)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(done) == "3 compiled, 0 up to date, 0 failed"
    assert "compiling 3 kernels with nvrtc" in done.stdout and "[3/3, 100%" in done.stdout
    rows = metadata.load(out / "metadata.json")
    assert {row.spec for row in rows} == set(SPECS)
    for row in rows:
        assert metadata.read_cubin(row, out)[:4] == b"\x7fELF"
        assert row.spill_bytes == 0 and 0 < row.registers <= 255
        assert (out / "sm90" / f"{row.name}.cu").read_text().startswith(f"// {row.name}\n")
    log = json.loads((out / "build_log.json").read_text())
    assert log["kernels"].keys() == {spec.name for spec in SPECS}
    assert all(0 < item["seconds"] < 30 and 0 < item["peak_mb"] < 1000 for item in log["kernels"].values())
    listed = standin.run("--list", "--json", *ONLY, "--out", out, templates=templates)
    assert all(row["built"] and row["registers"] for row in json.loads(listed.stdout))
    edit(templates / "include/skimattn/core/base.cuh", "1.0f", "1.5f")
    listed = standin.run("--list", "--json", *ONLY, "--out", out, templates=templates)
    of_list = {row["mask"]: (row["built"], row["stale"]) for row in json.loads(listed.stdout)}
    assert of_list == {"causal": (False, True), "full": (True, False), "window": (True, False)}
    text = standin.run("--list", *ONLY, "--out", out, templates=templates).stdout
    words = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.startswith("skim_")}
    assert words == {spec.name: "stale" if spec == CAUSAL else "yes" for spec in SPECS}
    assert "3 kernels, 2 built in" in text and "1 stale: built from other sources than those of now" in text


def test_only_what_includes_a_changed_header_is_compiled_again(out: Path, templates: Path) -> None:
    core = templates / "include" / "skimattn" / "core"
    build(out, templates)
    assert summary(build(out, templates)) == "0 compiled, 3 up to date, 0 failed"
    os.utime(core / "base.cuh")
    assert summary(build(out, templates)) == "0 compiled, 3 up to date, 0 failed"
    edit(core / "base.cuh", "1.0f", "1.5f")  # reached through causal.cuh
    assert summary(build(out, templates)) == "1 compiled, 2 up to date, 0 failed"
    edit(core / "other.cuh", "3.0f", "3.5f")
    assert summary(build(out, templates)) == "2 compiled, 1 up to date, 0 failed"
    (core / "unused.cuh").write_text("#pragma once\n")
    assert summary(build(out, templates)) == "0 compiled, 3 up to date, 0 failed"
    edit(templates / "kernel.cu.j2", "kValue +", "kValue -")
    assert summary(build(out, templates)) == "3 compiled, 0 up to date, 0 failed"


def test_the_same_inputs_give_the_same_bytes_everywhere(out: Path, templates: Path, tmp_path: Path) -> None:
    other = tmp_path / "some where" / "deeper: than $before"
    shutil.copytree(templates, tmp_path / "copy")
    build(out, templates)
    assert build(other, tmp_path / "copy").returncode == 0
    assert products(out) == products(other)
    assert len(products(out)) == 3 + 4 + 3 + 1


def test_a_compiler_error_names_the_kernel_and_the_others_are_built(out: Path, templates: Path) -> None:
    build(out, templates)
    edit(templates / "include/skimattn/core/causal.cuh", "kBase", "kBose")
    edit(templates / "include/skimattn/core/other.cuh", "3.0f", "3.5f")
    done = build(out, templates)
    assert done.returncode == 1
    assert summary(done) == "2 compiled, 0 up to date, 1 failed"
    assert f"failed: {CAUSAL.name}" in done.stderr
    assert f"{CAUSAL.name}: NVRTC_ERROR_COMPILATION" in done.stdout
    assert 'skimattn/core/causal.cuh(3): error: identifier "kBose" is undefined' in done.stdout
    assert {row.spec for row in metadata.load(out / "metadata.json")} == set(SPECS) - {CAUSAL}
    edit(templates / "include/skimattn/core/causal.cuh", "kBose", "kBase")
    assert summary(build(out, templates)) == "1 compiled, 2 up to date, 0 failed"


def test_spills_fail_a_kernel_unless_documented(
    out: Path, templates: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    body = f"<% if spec.mask == 'causal' %>{standin.SPILLING}<% endif %>"
    edit(templates / "kernel.cu.j2", "  out[threadIdx.x] = kValue", body + "\n  out[threadIdx.x] = kValue")
    monkeypatch.setenv(emit.TEMPLATES_VARIABLE, str(templates))
    chosen = pipeline.Build(out, standin.TOOLCHAIN)
    outcome = chosen.run(SPECS, 2)
    assert outcome.failed == (CAUSAL.name,)
    assert len(outcome.compiled) == 2
    assert f"{CAUSAL.name}: ptxas findings that fail a build:\n  spills: " in capfd.readouterr().out
    meant = ptxas.Allowance("spills<=100000", lambda spec: spec == CAUSAL, "a stand-in that is meant to spill")
    monkeypatch.setattr(ptxas, "ALLOWANCES", [meant])
    outcome = chosen.run(SPECS, 2)
    assert outcome.compiled == (CAUSAL.name,)
    assert next(row for row in outcome.rows if row.spec == CAUSAL).spill_bytes > 0


def test_damage_is_repaired(out: Path, templates: Path) -> None:
    build(out, templates)
    before = products(out)
    first, second, third = (out / pipeline.stem_of(spec) for spec in SPECS)
    first.with_suffix(".cubin").write_bytes(first.with_suffix(".cubin").read_bytes()[:-1])
    second.with_suffix(".json").write_text("{")
    third.with_suffix(".cubin").unlink()
    third.with_suffix(".cu").write_text("// edited by hand\n")
    (out / "metadata.json").write_text("[")
    (out / "include/skimattn/params.cuh").unlink()
    (out / "sm90" / f"x.cubin.a1{TEMPORARY}").write_text("left by a killed compiler")
    done = build(out, templates)
    assert summary(done) == "3 compiled, 0 up to date, 0 failed"
    assert products(out) == before
    assert not list(out.rglob(f"*{TEMPORARY}"))


@pytest.mark.parametrize("all_processes", [True, False], ids=["everything", "build.py"])
def test_a_killed_build_is_finished_by_the_next(out: Path, templates: Path, all_processes: bool) -> None:
    command = standin.command(*ONLY, "--jobs", "1", "--out", out)
    victim = subprocess.Popen(
        command, env=standin.environment(templates), start_new_session=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("sm90/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    if all_processes:
        os.killpg(victim.pid, signal.SIGKILL)
    else:
        victim.kill()  # ninja lives on and keeps the lock, so the next build waits for it
    assert victim.wait() == -signal.SIGKILL
    assert not (out / "metadata.json").exists()
    done = build(out, templates)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row.spec for row in metadata.load(out / "metadata.json")} == set(SPECS)
    assert summary(build(out, templates)) == "0 compiled, 3 up to date, 0 failed"


def test_two_builds_at_once_do_no_harm(out: Path, templates: Path, tmp_path: Path) -> None:
    command = standin.command(*ONLY, "--jobs", "1", "--out", out)
    builds = [
        subprocess.Popen(command, env=standin.environment(templates), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=120)[0] for process in builds]
    assert [process.returncode for process in builds] == [0, 0]
    assert sum("0 compiled, 3 up to date" in text for text in texts) == 1
    assert sum("another build is at work" in text for text in texts) == 1
    build(tmp_path / "alone", templates)
    assert products(out) == products(tmp_path / "alone")


def test_line_tables_are_another_build(out: Path, templates: Path) -> None:
    build(out, templates)
    plain = products(out)
    assert summary(build(out, templates, "--lineinfo")) == "3 compiled, 0 up to date, 0 failed"
    rows = metadata.load(out / "metadata.json")
    assert {row.compiler for row in rows} == {"nvrtc 13.0.88 lineinfo"}
    assert b".debug_line" in metadata.read_cubin(rows[0], out)
    assert summary(build(out, templates)) == "3 compiled, 0 up to date, 0 failed"
    assert products(out) == plain


def test_a_dry_run_says_why_and_writes_nothing(out: Path, templates: Path) -> None:
    done = build(out, templates, "--dry-run")
    assert done.returncode == 0
    assert f"{CAUSAL.name}: not built" in done.stdout
    assert "3 of 3 kernels would be compiled" in done.stdout
    assert not out.exists()
    build(out, templates)
    edit(templates / "include/skimattn/core/base.cuh", "1.0f", "1.5f")
    before = products(out)
    done = build(out, templates, "--dry-run", "--lineinfo")
    assert f"{CAUSAL.name}: source changed" in done.stdout
    assert done.stdout.count("compiler or options changed") == 2
    assert products(out) == before


def test_a_smaller_choice_keeps_what_is_current_and_drops_what_is_not(out: Path, templates: Path) -> None:
    build(out, templates)
    done = build(out, templates, "--only", "mask=causal")
    assert summary(done) == "0 compiled, 3 up to date, 0 failed"  # --only adds values to the field
    narrow = [item.replace("mask=full,causal,window", "mask=causal") for item in ONLY]
    done = standin.run(*narrow, "--out", out, templates=templates)
    assert summary(done) == "0 compiled, 1 up to date, 0 failed"
    assert len(metadata.load(out / "metadata.json")) == 3
    edit(templates / "include/skimattn/core/other.cuh", "3.0f", "3.5f")
    done = standin.run(*narrow, "--out", out, templates=templates)
    assert "left out, because the sources have changed since they were built: 2 kernels (skim_" in done.stdout
    assert [row.spec for row in metadata.load(out / "metadata.json")] == [CAUSAL]


def test_clean_removes_what_builds_made_and_nothing_else(out: Path, templates: Path) -> None:
    build(out, templates)
    mine = [out / name for name in ("notes.txt", "sm90/notes.json", "sm_files/a.cu", "x/y.1.2.tmp", "swap.tmp")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    build(out, templates)
    assert all(path.exists() for path in mine)
    (out / "sm90" / f"skim_x.cubin.a1{TEMPORARY}").write_text("left by a killed compiler")
    done = standin.run("--clean", "--out", out)
    assert done.returncode == 0
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(mine)
    done = standin.run("--clean", "--out", out)
    assert done.returncode == 1
    assert "no build was made here, nothing is removed" in done.stderr
    assert standin.run("--clean", "--out", out / "nowhere").returncode == 0


def test_a_build_with_nothing_to_do_takes_about_a_millisecond_a_kernel(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = sets.specs("default")
    chosen = pipeline.Build(out, standin.TOOLCHAIN)
    compiled = standin.pretend_compiler(monkeypatch, chosen, specs)
    chosen.run(specs, 2)
    assert len(compiled) == len(specs)
    seconds, bound = [], 2e-3 * len(specs)  # of the CPU: other tests run at the same time
    while len(seconds) < 5 and min(seconds, default=bound) >= bound:
        before = os.times()
        done = standin.run("--sm", "90", "100", "--out", out)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert summary(done) == f"0 compiled, {len(specs)} up to date, 0 failed"
    assert min(seconds) < bound, seconds


def test_estimates_come_from_what_was_measured(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = pipeline.Build(out, standin.TOOLCHAIN)
    assert chosen.estimate(10, 2) == pytest.approx(5 * 2.0)
    standin.pretend_compiler(monkeypatch, chosen, SPECS)
    chosen.run(SPECS, 2)
    assert chosen.estimate(10, 2) == pytest.approx(5 * 1.5)
    assert chosen.estimate(1, 8) == pytest.approx(1.5)
    assert chosen.estimate(0, 8) == 0


def test_a_lock_is_held_until_its_last_holder_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path) as descriptor:
        child = subprocess.Popen(["sleep", "0.3"], pass_fds=(descriptor,))
    start = time.monotonic()
    with locked(path):
        assert time.monotonic() - start > 0.1
        assert child.wait() == 0
