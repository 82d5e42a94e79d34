"""The folder of built kernels: read again when it is built anew, and not trusted if everybody can write it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import pytest
from skimattn import ArgumentError, BuildError, NoKernelError, variants
from skimattn._select import kernels
from skimattn.codegen import jit, metadata, pipeline
from skimattn.codegen.files import write_atomic
from skimattn.codegen.report import Report, write_result
from skimattn.codegen.spec import KernelSpec

from tests.helpers import standin

SPEC = KernelSpec("sm90", "prefill", "bf16", "bf16", 64, 64, "causal", False, "dense", False, False)
SOURCES = pipeline.Sources()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kernels.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(kernels.JIT_VARIABLE, "off")
    (tmp_path / "sm90").mkdir()
    return tmp_path


def compiled(folder: Path, cubin: bytes) -> metadata.Kernel:
    """What a build writes when it has compiled SPEC; returns the row that the metadata will hold."""
    stem, source = pipeline.stem_of(SPEC), SOURCES.unit(SPEC).source_sha256
    report = Report("", source, hashlib.sha256(cubin).hexdigest(), "nvrtc 13.0.88", 168, 0, 1.0, 1)
    write_result(folder / stem, cubin, report)
    return metadata.kernel_of(SPEC, report, f"{stem}.cubin")


def collected(folder: Path, *rows: metadata.Kernel) -> None:
    """What a build writes at its end."""
    write_atomic(folder / "metadata.json", metadata.dump(rows).encode())


def test_a_kernel_that_is_built_later_is_found(folder: Path) -> None:
    with pytest.raises(NoKernelError, match=f"^{SPEC.name}: not built, and SKIMATTN_JIT=0 forbids"):
        kernels.obtain(SPEC)
    row = compiled(folder, b"a cubin")
    collected(folder, row)
    assert kernels.obtain(SPEC) == (row, b"a cubin")
    assert [row["name"] for row in variants() if row["built"]] == [SPEC.name]


def test_a_kernel_that_is_built_anew_is_read_anew(folder: Path) -> None:
    collected(folder, compiled(folder, b"the first"))
    assert kernels.obtain(SPEC)[1] == b"the first"
    row = compiled(folder, b"the second, longer")
    assert kernels.obtain(SPEC) == (row, b"the second, longer")  # while the build compiles others
    collected(folder, row)
    assert kernels.obtain(SPEC) == (row, b"the second, longer")


def test_a_build_that_ends_between_two_looks_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected(folder, compiled(folder, b"the first"))
    read_cubin = metadata.read_cubin

    def ends(kernel: metadata.Kernel, place: Path) -> bytes:
        monkeypatch.setattr(metadata, "read_cubin", read_cubin)
        other = dataclasses.replace(kernel, cubin="other.cubin", cubin_sha256=hashlib.sha256(b"other").hexdigest())
        (place / kernel.cubin).unlink()
        write_atomic(place / "other.cubin", b"other")
        collected(place, other)
        return read_cubin(kernel, place)

    monkeypatch.setattr(metadata, "read_cubin", ends)
    assert kernels.obtain(SPEC)[1] == b"other"


def test_damage_that_no_build_explains_is_refused_every_time_until_it_is_repaired(folder: Path) -> None:
    row = compiled(folder, b"a cubin")
    collected(folder, row)
    (folder / row.cubin).write_bytes(b"a cubi")
    for _ in range(2):
        with pytest.raises(BuildError, match=rf"^{SPEC.name}: cubin .* has sha256 .*run python build.py again"):
            kernels.obtain(SPEC)
    assert compiled(folder, b"a cubin") == row
    assert kernels.obtain(SPEC) == (row, b"a cubin")


def test_metadata_is_read_once_while_it_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected(folder, compiled(folder, b"a cubin"))
    kernels.obtain(SPEC)
    monkeypatch.setattr(metadata, "load", lambda path: pytest.fail("read again"))
    kernels.obtain(SPEC)


def test_a_folder_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.FOLDER_VARIABLE, f"{folder}/none")
    for use in (lambda: kernels.obtain(SPEC), variants):
        with pytest.raises(
            ArgumentError, match=rf"^SKIMATTN_KERNELS: expected a folder that exists \(got '{folder}/none'\)"
        ):
            use()


@pytest.mark.parametrize("what", ["", "metadata.json"])
def test_what_everybody_can_write_is_refused(folder: Path, what: str) -> None:
    collected(folder, compiled(folder, b"a cubin"))
    path = folder / what
    path.chmod(path.stat().st_mode | 0o002)
    text = rf"^{re.escape(str(path))}: every user can write to it, so no kernel is loaded .*; chmod o-w {path}$"
    with pytest.raises(BuildError, match=text):
        kernels.obtain(SPEC)
    path.chmod(path.stat().st_mode & ~0o002)
    assert kernels.obtain(SPEC)[1] == b"a cubin"


@pytest.mark.parametrize(
    ("word", "compiles"), [("off", False), ("False", False), ("no", False), ("", True), ("on", True)]
)
def test_the_words_that_switch_compiling_off(
    folder: Path, word: str, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.JIT_VARIABLE, word)
    monkeypatch.setattr(jit, "compile_spec", lambda spec: (kernels.unbuilt_row(spec), b"compiled"))
    if compiles:
        assert kernels.obtain(SPEC)[1] == b"compiled"
    else:
        with pytest.raises(NoKernelError, match="not built"):
            kernels.obtain(SPEC)


def test_another_word_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.JIT_VARIABLE, "never")
    with pytest.raises(ArgumentError, match=r"^SKIMATTN_JIT: expected one of 1, true, .*, no \(got 'never'\)"):
        kernels.obtain(SPEC)


def test_templates_that_are_not_there_are_named_by_the_build(tmp_path: Path) -> None:
    done = standin.run("--sm", "90", "--dry-run", templates=tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr == f"Error: SKIMATTN_TEMPLATES: expected a folder that exists (got '{tmp_path}/none')\n"
