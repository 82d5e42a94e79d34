"""From specs to ``metadata.json``: render, find out what changed, compile that, collect.

The content key of a kernel covers its rendered source, all headers it reaches, the compiler and the options. A
kernel is up to date when its report carries the key of now and its cubin has the hash in the report; anything
else, from an edited header to a file that a killed build left half done, is compiled again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import emit, matrix, metadata, ninja_file, ptxas
from .compile import key_of
from .files import locked, write_if_changed
from .output import LOCK, LOG, METADATA, log_text, require_own, temporaries
from .report import Report, read_report, stale_reason
from .spec import KernelSpec
from .toolchain import Toolchain
from .unit import Headers, Unit, from_folders

_GUESS_SECONDS = 2.0  # per kernel, until a build has been measured


def stem_of(spec: KernelSpec) -> str:
    """Where a kernel's files lie in the output folder, without suffix."""
    return f"{spec.arch}/{spec.name}"


class Sources:
    """The rendered headers and, on demand, the unit of any spec. Needs no output folder."""

    def __init__(self) -> None:
        """Render the shared headers."""
        self.rendered = {f"skimattn/{name}": emit.render_header(name) for name in emit.HEADERS}
        static = from_folders([self.include])
        self._headers = Headers(lambda name: self.rendered.get(name) or static(name))

    @cached_property
    def include(self) -> Path:
        """The folder of the headers that are not rendered."""
        return emit.templates_root() / "include"

    def unit(self, spec: KernelSpec) -> Unit:
        """Source and headers of a kernel."""
        return self._headers.unit(spec.name, spec.arch, emit.render_kernel(spec))


def is_stale(kernel: metadata.Kernel, sources: Sources) -> bool:
    """Whether a built kernel was made from other sources than these."""
    return sources.unit(kernel.spec).source_sha256 != kernel.source_sha256


@dataclass(frozen=True)
class Plan:
    """What a build would do: the units of the chosen specs, and why some have to be compiled."""

    units: dict[KernelSpec, Unit]
    stale: dict[KernelSpec, str]


@dataclass(frozen=True)
class Outcome:
    """What a build did. ``rows`` is the content of ``metadata.json``; ``dropped`` are names left out as outdated."""

    compiled: tuple[str, ...]
    failed: tuple[str, ...]
    dropped: tuple[str, ...]
    rows: tuple[metadata.Kernel, ...]


class Build:
    """One output folder, one toolchain."""

    def __init__(self, folder: Path, toolchain: Toolchain) -> None:
        """Nothing is read or written yet."""
        self.folder = folder.absolute()
        self.toolchain = toolchain
        self.sources = Sources()

    def plan(self, specs: Sequence[KernelSpec]) -> Plan:
        """Compare the folder with what the sources of now would give. Writes nothing.

        Raises:
            ArgumentError: the folder is none, or holds files of others that a build would overwrite.
            OSError: it cannot be read.
        """
        require_own(self.folder)
        return self._plan(specs)

    def _plan(self, specs: Sequence[KernelSpec]) -> Plan:
        units = {spec: self.sources.unit(spec) for spec in specs}
        reasons = {spec: self._stale(spec, unit, self.toolchain) for spec, unit in units.items()}
        return Plan(units, {spec: reason for spec, reason in reasons.items() if reason})

    def _stale(self, spec: KernelSpec, unit: Unit, toolchain: Toolchain) -> str:
        key = key_of(unit, toolchain, ptxas.allowed(spec))
        return stale_reason(self.folder / stem_of(spec), unit.source_sha256, key)

    def estimate(self, count: int, jobs: int) -> float:
        """Seconds that compiling ``count`` kernels should take, from what earlier builds here took."""
        try:
            kernels = json.loads((self.folder / LOG).read_bytes())["kernels"].values()
            each = statistics.median(kernel["seconds"] for kernel in kernels)
        except (OSError, ValueError, KeyError, TypeError):
            each = _GUESS_SECONDS
        return float(each) * count / min(jobs, max(count, 1))

    def run(self, specs: Sequence[KernelSpec], jobs: int) -> Outcome:
        """Bring ``specs`` up to date. A kernel that fails does not keep the others from being built.

        Raises:
            ArgumentError: the folder is none, or holds files of others, which stay as they are.
            OSError: it cannot be written.
        """
        require_own(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCK, self._say_waiting) as lock:
            self._sweep()
            plan = self._plan(specs)
            self._write_sources(plan)
            if plan.stale:
                self._announce(plan, jobs)
                ninja_file.run(self.folder, [stem_of(spec) for spec in plan.stale], jobs, lock)
            return self._collect(specs, plan)

    def _say_waiting(self) -> None:
        print(f"another build is at work in {self.folder}, waiting for it", flush=True)

    def _sweep(self) -> None:
        for leftover in temporaries(self.folder):
            leftover.unlink(missing_ok=True)

    def _announce(self, plan: Plan, jobs: int) -> None:
        count = len(plan.stale)
        seconds = self.estimate(count, jobs)
        print(f"compiling {count} kernels with {self.toolchain.id}, {jobs} at once: about {seconds:.0f} s", flush=True)

    def _write_sources(self, plan: Plan) -> None:
        for name, text in self.sources.rendered.items():
            write_if_changed(self.folder / "include" / name, text)
        for spec, unit in plan.units.items():
            write_if_changed(self.folder / f"{stem_of(spec)}.cu", unit.source)
        for spec in plan.stale:  # an outdated result must not outlive a compile that fails
            for suffix in (".json", ".cubin"):
                (self.folder / (stem_of(spec) + suffix)).unlink(missing_ok=True)
        stems = {stem_of(spec): ptxas.allowed(spec) for spec in plan.units}
        text = ninja_file.render(stems, self.toolchain, self.sources.include, stems)
        write_if_changed(self.folder / ninja_file.NAME, text)

    def _collect(self, specs: Sequence[KernelSpec], plan: Plan) -> Outcome:
        reports, dropped = self._valid_reports(plan)
        rows = tuple(metadata.kernel_of(spec, report, f"{stem_of(spec)}.cubin") for spec, report in reports.items())
        write_if_changed(self.folder / METADATA, metadata.dump(rows))
        write_if_changed(self.folder / LOG, _log(reports))
        compiled = tuple(spec.name for spec in plan.stale if spec in reports)
        failed = tuple(spec.name for spec in specs if spec not in reports)
        return Outcome(compiled, failed, dropped, rows)

    def _valid_reports(self, plan: Plan) -> tuple[dict[KernelSpec, Report], tuple[str, ...]]:
        """Reports of everything in the folder that is up to date, whichever build made it, and names that are not."""
        names = {path.stem for arch in self.folder.glob("sm*/") for path in arch.glob("*.json")}
        reports: dict[KernelSpec, Report] = {}
        dropped = []
        for spec in matrix.all_specs():
            if spec.name not in names or (report := self._report(spec)) is None:
                continue
            if spec in plan.units:  # those that were not stale before have been checked a moment ago
                stale = spec in plan.stale and self._stale(spec, plan.units[spec], self.toolchain)
            else:
                stale = self._stale(spec, self.sources.unit(spec), Toolchain.from_id(report.compiler))
            if stale:
                dropped.append(spec.name)
            else:
                reports[spec] = report
        return reports, tuple(dropped)

    def _report(self, spec: KernelSpec) -> Report | None:
        return read_report(self.folder / f"{stem_of(spec)}.json")


def _log(reports: Mapping[KernelSpec, Report]) -> str:
    return log_text({spec.name: {"seconds": item.seconds, "peak_mb": item.peak_mb} for spec, item in reports.items()})


def built(folder: Path) -> dict[KernelSpec, metadata.Kernel]:
    """The kernels that ``folder`` offers: rows of its metadata whose cubin is there. Empty if nothing was built."""
    try:
        rows = metadata.load(folder / METADATA)
    except FileNotFoundError:
        return {}
    return {row.spec: row for row in rows if (folder / row.cubin).is_file()}
