"""Includes, content keys, and what ptxas logs say."""

from __future__ import annotations

from pathlib import Path

import pytest
from skimattn.codegen import ptxas
from skimattn.codegen.compile import key_of
from skimattn.codegen.ptxas import Usage
from skimattn.codegen.toolchain import Toolchain
from skimattn.codegen.unit import Headers, from_folders, includes_of

TEXTS = {
    "skimattn/a.cuh": "#include <skimattn/b.cuh>\n#include <skimattn/c.cuh>\n",
    "skimattn/b.cuh": '#  include "skimattn/c.cuh"\n',
    "skimattn/c.cuh": "#include <skimattn/a.cuh>\n",
    "skimattn/d.cuh": "",
}
SOURCE = "#include <skimattn/a.cuh>\nint x;\n"
TOOLCHAIN = Toolchain("nvrtc", "13.0.88")


def key(source: str = SOURCE, toolchain: Toolchain = TOOLCHAIN, allowed: tuple[str, ...] = (), **texts: str) -> str:
    known = {**TEXTS, **{f"skimattn/{name}.cuh": text for name, text in texts.items()}}
    return key_of(Headers(known.get).unit("kernel", "sm90", source), toolchain, allowed)


def test_includes_are_found_as_the_preprocessor_reads_them() -> None:
    text = (
        '#include <skimattn/a.cuh>\n  #  include\t"skimattn/b/c.cuh"\n// #include <skimattn/no.cuh>\n#include <x.h>\n'
    )
    assert includes_of(text) == ["skimattn/a.cuh", "skimattn/b/c.cuh"]


def test_the_closure_follows_includes_and_survives_cycles() -> None:
    closure = Headers(TEXTS.get).closure(SOURCE)
    assert list(closure.texts) == ["skimattn/a.cuh", "skimattn/b.cuh", "skimattn/c.cuh"]


def test_missing_headers_are_left_to_the_compiler() -> None:
    assert Headers(TEXTS.get).closure("#include <skimattn/none.cuh>").texts == {}


def test_the_first_folder_wins(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "skimattn").mkdir(parents=True)
        (tmp_path / folder / "skimattn" / "x.cuh").write_text(folder)
    resolve = from_folders([tmp_path / "one", tmp_path / "two"])
    assert resolve("skimattn/x.cuh") == "one"
    assert resolve("skimattn/y.cuh") is None


def test_the_key_covers_all_that_is_compiled_and_nothing_else() -> None:
    same = key()
    assert same == key() == key(d="// changed, but not included\n")
    changed = [
        key(SOURCE + "\n"),
        key(c="// changed\n"),
        key(toolchain=Toolchain("nvrtc", "13.0.89")),
        key(toolchain=Toolchain("nvcc", "13.0.88")),
        key(toolchain=Toolchain("nvrtc", "13.0.88", lineinfo=True)),
        key(allowed=("spills",)),
    ]
    assert len({same, *changed}) == 1 + len(changed)


@pytest.mark.parametrize("lineinfo", [False, True])
def test_toolchain_ids_can_be_read_back(lineinfo: bool) -> None:
    toolchain = Toolchain("nvcc", "13.0.88", lineinfo)
    assert Toolchain.from_id(toolchain.id) == toolchain


LOG = """ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas         .     16 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
"""
SERIALIZED = (
    "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
    "insufficient register resources for the wgmma pipeline in the function 'k'"
)
IGNORED = (
    "ptxas info : (C7507) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum register requirements."
)


def test_usage_is_read() -> None:
    assert ptxas.parse(LOG.format(stores=24, loads=8)) == Usage(168, 32)


def test_a_log_without_usage_is_a_finding() -> None:
    unknown = ptxas.parse("ptxas info : nothing")
    assert unknown == Usage(0, 0)
    assert ptxas.refused("", unknown, ()) == ["unknown: the compiler's log has no ptxas usage lines"]


ALL = IGNORED + "\n" + SERIALIZED + "\n" + LOG.format(stores=4, loads=4)


@pytest.mark.parametrize(
    ("log", "allowed", "names"),
    [
        (LOG.format(stores=0, loads=0), [], []),
        (LOG.format(stores=0, loads=4), [], ["spills"]),
        (LOG.format(stores=0, loads=4), ["spills<=3"], ["spills"]),
        (LOG.format(stores=0, loads=4), ["spills<=4"], []),
        (LOG.format(stores=0, loads=0) + SERIALIZED, [], ["wgmma-serialized"]),
        (LOG.format(stores=0, loads=0) + IGNORED, ["spills<=9"], ["setmaxnreg-ignored"]),
        (ALL, [], ["spills", *ptxas.WARNINGS]),
        (ALL, ["spills<=8", *ptxas.WARNINGS], []),
    ],
)
def test_findings(log: str, allowed: list[str], names: list[str]) -> None:
    assert [line.split(":")[0] for line in ptxas.refused(log, ptxas.parse(log), allowed)] == names
