"""The two compilers, behind one function: a unit goes in, a cubin and the log come out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .arch import ARCHS
from .errors import BuildError
from .unit import Unit

COMPILERS = ("nvrtc", "nvcc")
NVRTC_PACKAGES = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")  # of CUDA 13 and later, of CUDA 12
_COMMON = ("-std=c++20",)


@dataclass(frozen=True)
class Toolchain:
    """A compiler, its exact version, and whether line tables are wanted."""

    compiler: str
    version: str
    lineinfo: bool = False

    @property
    def id(self) -> str:
        """Names the toolchain in metadata and in content keys, such as ``nvrtc 13.0.88``."""
        return f"{self.compiler} {self.version}" + (" lineinfo" if self.lineinfo else "")

    @property
    def cuda(self) -> tuple[int, int]:
        """The CUDA that the compiler belongs to, such as ``(13, 0)``."""
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)

    @classmethod
    def from_id(cls, text: str) -> Toolchain:
        """The inverse of :attr:`id`."""
        compiler, version, *rest = text.split(" ")
        return cls(compiler, version, rest == ["lineinfo"])

    def options(self, arch: str) -> tuple[str, ...]:
        """Compiler options for ``arch`` (``sm90``): they name no path, so they are part of the content key."""
        target = ARCHS[arch].target
        line = ("-lineinfo",) if self.lineinfo else ()
        if self.compiler == "nvcc":
            return (f"-gencode=arch=compute_{target},code=sm_{target}", "-cubin", "-Xptxas=-v", *_COMMON, *line)
        # From 12.9 on NVRTC keeps results in the driver's cache, if there is one, and what comes from there has no log.
        uncached = ("--no-cache",) if self.cuda >= (12, 9) else ()
        return (f"-arch=sm_{target}", "--ptxas-options=-v", *uncached, *_COMMON, *line)


def find_toolchain(compiler: str, lineinfo: bool = False) -> Toolchain:
    """The installed compiler called ``compiler``; ``BuildError`` says what is missing."""
    if compiler not in COMPILERS:
        raise ValueError(f"compiler: expected one of {', '.join(COMPILERS)} (got {compiler!r})")
    return Toolchain(compiler, _nvcc_version() if compiler == "nvcc" else _nvrtc_version(), lineinfo)


def _nvrtc_version() -> str:
    # Read from the package, not the library: a build with nothing to do must not pay for loading 100 MB.
    found = [Toolchain("nvrtc", version) for name in NVRTC_PACKAGES if (version := _installed(name))]
    if len(found) > 1:  # of two libraries, which one is loaded is not chosen here
        loaded = _loaded_nvrtc()
        found.sort(key=lambda toolchain: toolchain.cuda != loaded)
    if not found:
        raise BuildError("NVRTC is not installed: pip install nvidia-cuda-nvrtc (of CUDA 12: nvidia-cuda-nvrtc-cu12)")
    return found[0].version


def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _loaded_nvrtc() -> tuple[int, int]:
    """The CUDA of the library, which is loaded to ask it."""
    from cuda.bindings import nvrtc

    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BuildError(f"NVRTC: cuda-bindings {_installed('cuda-bindings')} finds no library ({reason})") from error
    _check(status)
    return major, minor


def nvcc_path() -> str:
    """``nvcc`` from PATH or CUDA_HOME; ``BuildError`` if neither has one."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)
    if found is None:
        raise BuildError("nvcc: found neither on PATH nor in CUDA_HOME/bin (--compiler nvrtc needs no toolkit)")
    return found


def _nvcc_version() -> str:
    text = subprocess.run([nvcc_path(), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", text)
    if match is None:
        raise BuildError(f"nvcc --version: expected a line with V<major.minor.patch> (got {text!r})")
    return match.group(1)


def compile_unit(unit: Unit, toolchain: Toolchain) -> tuple[bytes, str]:
    """Compile to (cubin, log). ``BuildError`` carries the log if the compiler refuses the source."""
    oldest = ARCHS[unit.arch].cuda
    if toolchain.cuda < oldest:
        wanted = ".".join(map(str, oldest))
        raise BuildError(
            f"{unit.name}: kernels of {unit.arch} need {toolchain.compiler} {wanted} or newer (got {toolchain.version})"
        )
    run = _run_nvcc if toolchain.compiler == "nvcc" else _run_nvrtc
    return run(unit, toolchain)


def _run_nvrtc(unit: Unit, toolchain: Toolchain) -> tuple[bytes, str]:
    from cuda.bindings import nvrtc

    if toolchain.cuda != (loaded := _loaded_nvrtc()):
        raise BuildError(f"NVRTC: expected the library of package version {toolchain.version} (got {loaded})")
    # Headers go in by name and content: no path can reach the cubin, and what is hashed is what is compiled.
    texts = [text.encode() for text in unit.closure.texts.values()]
    names = [name.encode() for name in unit.closure.texts]
    source, title = unit.source.encode(), f"{unit.name}.cu".encode()
    status, program = nvrtc.nvrtcCreateProgram(source, title, len(names), texts, names)
    _check(status)
    try:
        options = [option.encode() for option in toolchain.options(unit.arch)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _nvrtc_log(program)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise BuildError(f"{unit.name}: {status.name}\n{log}")
        size = _check(*nvrtc.nvrtcGetCUBINSize(program))
        cubin = bytearray(size)
        _check(*nvrtc.nvrtcGetCUBIN(program, cubin))
        return bytes(cubin), log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc_log(program: object) -> str:
    from cuda.bindings import nvrtc

    log = bytearray(_check(*nvrtc.nvrtcGetProgramLogSize(program)))
    _check(*nvrtc.nvrtcGetProgramLog(program, log))
    return log.rstrip(b"\0 \n").decode(errors="replace")


def _check(status: object, value: int = 0) -> int:
    if int(status) != 0:  # type: ignore[call-overload]
        raise BuildError(f"NVRTC: {status}")
    return value


def _run_nvcc(unit: Unit, toolchain: Toolchain) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory(prefix="skimattn-") as folder:
        root = Path(folder)
        for name, text in (unit.closure.texts | {f"{unit.name}.cu": unit.source}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        command = [nvcc_path(), *toolchain.options(unit.arch), "-I.", f"{unit.name}.cu", "-o", "kernel.cubin"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        log = (done.stdout + done.stderr).strip()
        if done.returncode != 0:
            raise BuildError(f"{unit.name}: nvcc exited with {done.returncode}\n{log}")
        return (root / "kernel.cubin").read_bytes(), log
