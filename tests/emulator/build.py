"""Compiles rendered kernels for the emulator. Results are cached by content and shared between processes."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from skimattn.codegen.emit import HEADERS, render_header, render_kernel, templates_root
from skimattn.codegen.files import locked
from skimattn.codegen.spec import KernelSpec

from .run import EmulatedKernel

HERE = Path(__file__).parent
CACHE_VARIABLE = "SKIMATTN_EMULATOR_CACHE"
_COMMON = ("-std=c++20", "-march=native", "-fno-math-errno", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-w")
_RUNTIME_OPTIONS = (*_COMMON, "-O3", "-ffp-contract=fast", "-fno-semantic-interposition")
# Kernels say fmaf where they mean it; the compiler must not contract on its own. Most are run but a few times: they
# compile in a fifth of a second, where optimising them and reading C++'s own headers would take one. None throws.
_KERNEL_OPTIONS = (
    *(*_COMMON, "-O0", "-nostdinc++", "-fno-exceptions", "-fno-asynchronous-unwind-tables", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-DSKIM_HOST"),
)
# They use no C++ library and nothing at their start: the linker need not look at those.
_LINKED = ("-nostdlib", "-lm")
# What every kernel includes first, read once for all of them. None of it comes from the templates, so a mistake that is
# put into a kernel cannot lie in it.
_PRELUDE = "skimattn_host/prelude.h"
_ENTRY = """{source}
extern "C" __attribute__((visibility("default"))) void skim_emulator_entry(const void* block) {{
  {name}(*static_cast<const skimattn::Params*>(block));
}}
"""

_INCLUDE = re.compile(r"^\s*#\s*include\s*<(skimattn/[^>]+)>", re.MULTILINE)

HeaderPatch = Callable[[str, str], str]  # (include name such as "skimattn/sm90/prefill/consumer.cuh", text) -> text


class EmulatorBuildError(Exception):
    """The host compiler refused a kernel; the message holds its output."""


def compile_kernel(spec: KernelSpec, *, source_override: HeaderPatch | None = None) -> EmulatedKernel:
    """The kernel of ``spec``; ``source_override`` may change the text of any header of ``templates/include``."""
    return compile_source(spec.name, render_kernel(spec), source_override=source_override)


def compile_source(name: str, source: str, *, source_override: HeaderPatch | None = None) -> EmulatedKernel:
    """A kernel from its ``.cu`` text, whose entry ``name`` takes ``skimattn::Params`` by value."""
    headers = _closure(source, source_override)
    parts = [source, *_LINKED, _prelude_digest(), *(f"{key}\n{text}" for key, text in headers.items())]
    target = _cache_folder() / f"{name}-{_digest(parts)}.so"

    def build(folder: Path, output: Path) -> None:
        for include, text in headers.items():
            (folder / include).parent.mkdir(parents=True, exist_ok=True)
            (folder / include).write_text(text)
        unit = folder / f"{name}.cu"
        unit.write_text(_ENTRY.format(source=source, name=name))
        options = [*_KERNEL_OPTIONS, "-include", _PRELUDE, f"-I{_prelude()}", f"-I{folder}", f"-I{HERE / 'include'}"]
        _run(["-x", "c++", *options, str(unit), *_LINKED, "-o", str(output)])

    _build_once(target, build)
    return EmulatedKernel(name, runtime_library(), target)


@cache
def _prelude_digest() -> str:
    texts = [path.read_text() for path in sorted((HERE / "include/skimattn_host").glob("*.h"))]
    return _digest([*_KERNEL_OPTIONS, _machine(), *texts])


@cache
def _prelude() -> Path:
    """The folder with the precompiled prelude. A compiler that does not look for one finds the header itself."""
    folder = _cache_folder() / f"prelude-{_prelude_digest()}"
    target = folder / f"{_PRELUDE}.gch"
    target.parent.mkdir(parents=True, exist_ok=True)

    def build(_: Path, output: Path) -> None:
        header = HERE / "include" / _PRELUDE
        _run(["-x", "c++-header", *_KERNEL_OPTIONS, f"-I{HERE / 'include'}", str(header), "-o", str(output)])

    _build_once(target, build)
    return folder


@cache
def runtime_library() -> Path:
    """The emulator itself, compiled when its sources changed."""
    sources = sorted((HERE / "src").glob("*.cpp"))
    headers = [*sorted((HERE / "src").glob("*.h")), HERE / "include/skimattn_host/machine.h"]
    digest = _digest([*_RUNTIME_OPTIONS, _machine(), *(path.read_text() for path in (*sources, *headers))])
    target = _cache_folder() / f"emulator-{digest}.so"

    def build(folder: Path, output: Path) -> None:
        objects = [folder / f"{source.stem}.o" for source in sources]
        state = HERE / "src/state.h"
        options = [*_RUNTIME_OPTIONS, f"-I{HERE / 'include'}"]
        # Every source reads it, and most of C++'s headers through it.
        _run([*options, "-x", "c++-header", str(state), "-o", str(folder / f"{state.name}.gch")])

        def compile_one(source: Path, made: Path) -> None:
            found_first = ["-include", state.name, f"-I{folder}", f"-I{state.parent}"]
            _run([*options, *found_first, "-c", str(source), "-o", str(made)])

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # whoever else needs it waits meanwhile
            list(pool.map(compile_one, sources, objects))
        _run([*_RUNTIME_OPTIONS, *map(str, objects), "-o", str(output)])

    _build_once(target, build)
    return target


def _closure(source: str, override: HeaderPatch | None) -> dict[str, str]:
    """Every header that ``source`` reaches. The emulator's own come first, so they stand in for the real ones."""
    rendered = _rendered_headers()
    found: dict[str, str] = {}
    pending = _INCLUDE.findall(source)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        emulated = HERE / "include" / name
        if emulated.is_file():
            found[name] = emulated.read_text()
        else:
            text = rendered.get(name) or (templates_root() / "include" / name).read_text()
            found[name] = text if override is None else override(name, text)
        pending += _INCLUDE.findall(found[name])
    return dict(sorted(found.items()))


@cache
def _rendered_headers() -> dict[str, str]:
    return {f"skimattn/{name}": render_header(name) for name in HEADERS}


def _cache_folder() -> Path:
    chosen = os.environ.get(CACHE_VARIABLE)
    folder = Path(chosen) if chosen else HERE.parents[1] / "generated" / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise EmulatorBuildError("expected a C++20 compiler: set CXX, or install g++")
    return compiler


@cache
def _machine() -> str:
    """What a compiled file depends on besides its text: the compiler, and the CPU for ``-march=native``."""
    version = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    try:
        flags = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        flags = None
    return "\n".join([version, platform.machine(), flags.group(0) if flags else ""])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _build_once(target: Path, build: Callable[[Path, Path], None]) -> None:
    """Make ``target`` unless it exists. Parallel processes wait for the one that builds it."""
    if target.exists():
        return
    with locked(target.with_suffix(".lock")):
        if target.exists():
            return
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
            output = Path(scratch) / target.name
            build(Path(scratch), output)
            output.replace(target)


def _run(arguments: list[str]) -> None:
    result = subprocess.run([_compiler(), *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise EmulatorBuildError(result.stderr or f"compiler ended with {result.returncode}")
