"""Rendering: readable, complete, and the same bytes wherever it happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
from skimattn.codegen import emit
from skimattn.codegen.features import FEATURES
from skimattn.codegen.files import write_if_changed
from skimattn.codegen.matrix import all_specs
from skimattn.codegen.parameter_block import FIELDS
from skimattn.codegen.sets import specs
from skimattn.codegen.tiles import tile_of

_HASH_ALL = """
import hashlib
from skimattn.codegen import emit, sets
digest = hashlib.sha256()
for spec in sets.specs("default"):
    digest.update(emit.render_kernel(spec).encode())
for name in emit.HEADERS:
    digest.update(emit.render_header(name).encode())
print(digest.hexdigest())
"""


def test_sources_do_not_depend_on_process_or_folder(tmp_path: Path) -> None:
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", _HASH_ALL]
        digests.add(subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True).stdout)
    assert len(digests) == 1


def test_every_kernel_renders_to_its_own_short_source() -> None:
    texts = {emit.render_kernel(spec) for spec in all_specs()}
    assert len(texts) == len(all_specs())
    assert all(text.count("\n") < 60 for text in texts)
    assert not any(mark in text for text in texts for mark in ("${", "<%", "<#", "None", "True", "False"))


def test_a_source_states_its_spec() -> None:
    for spec in specs("smoke"):
        text, tile = emit.render_kernel(spec), tile_of(spec)
        assert (
            f'extern "C" __global__ void __launch_bounds__({tile.threads}, {tile.ctas_per_sm})\n    {spec.name}('
            in text
        )
        assert f"kHeadDim = {spec.head_dim};" in text
        assert f"kTileN = {tile.tile_n};" in text
        assert f"Mask::k{spec.mask.capitalize()};" in text
        assert f"kPaged = {str(spec.paged).lower()};" in text


def test_a_tile_adds_traits_of_its_own() -> None:
    """What only one architecture or phase has comes from its tiles: the template does not ask for one."""
    assert not re.search(r"sm\d", (emit.templates_root() / "kernel.cu.j2").read_text())
    split = {"kLeafShift", "kMaxLeaves", "kTwigLeaves", "kBranchLeaves"}
    blackwell_roles = {"kSoftmaxRegs", "kCorrectionRegs", "kOtherRegs", "kTmemColumns"}
    own = {
        ("sm90", "prefill"): {"kProducerRegs", "kConsumerRegs", "kQRegisterSteps"},
        ("sm90", "decode"): {"kProducerRegs", "kConsumerRegs", "kQInRegisters", *split},
        ("sm90", "combine"): {"kMaxBranches", *split},
        ("sm90", "mla"): {"kProducerRegs", "kLeaderRegs", "kFollowerRegs", *split},
        ("sm90", "transpose"): {"kThreads"},
        ("sm100", "prefill"): {*blackwell_roles, "kOrderedProducts"},
        ("sm100", "decode"): {*blackwell_roles, *split},
        ("sm100", "combine"): {"kMaxBranches", *split},
    }
    assert {(spec.arch, spec.phase) for spec in specs("smoke")} == own.keys()
    for (arch, phase), names in own.items():
        for spec in specs("smoke", {"phase": [phase]}, [arch]):
            constants = dict(re.findall(r"constexpr (?:int|bool) (k\w+) = (\w+);", emit.render_kernel(spec)))
            assert names <= constants.keys() and not constants.keys() & (set().union(*own.values()) - names)
            traits = tile_of(spec).traits(spec)
            assert traits.keys() == names
            assert {name: constants[name] for name in names} == {n: str(v).lower() for n, v in traits.items()}
    blackwell = emit.render_kernel(specs("smoke", archs=["sm100"])[0])
    assert "constexpr int kTmemColumns = 512;" in blackwell and "constexpr bool kOrderedProducts = true;" in blackwell


def test_templates_name_files_of_codegen_that_exist() -> None:
    root = emit.templates_root()
    texts = [path.read_text() for suffix in ("j2", "cuh") for path in root.rglob(f"*.{suffix}")]
    named = {name for text in texts for name in re.findall(r"codegen/([\w/]+\.py)", text)}
    assert {"parameter_block.py", "tiles/sm90_prefill.py", "tiles/sm100_prefill.py"} <= named
    assert not [name for name in named if not (Path(emit.__file__).parent / name).is_file()]


def test_headers_hold_every_field_and_value() -> None:
    block = emit.render_header("params.cuh")
    assert all(f" {field.name};" in block and f"Params.{field.name} moved" in block for field in FIELDS)
    enums = emit.render_header("features.cuh")
    for feature in FEATURES:
        for code, value in enumerate(feature.values):
            assert not isinstance(value, str) or f"k{emit.camel(value)} = {code}," in enums


def test_tensor_memory_is_moved_in_the_widths_that_kernels_use() -> None:
    kernels = "".join(path.read_text() for path in (emit.templates_root() / "include/skimattn/sm100").rglob("*.cuh"))
    moved = re.findall(r"tcgen05_(?:ld|st)(?:_halves)?<(\w+)(?:, \w+)?>\(", kernels)
    widths = " ".join(line for name in moved for line in re.findall(rf"int {name} = (.*?)[;,]", kernels))
    used = set(re.findall(r"\b\d+\b", widths))
    rendered = set(re.findall(r"void tcgen05_ld<(\d+)>", emit.render_header("tcgen05.cuh")))
    assert moved and rendered == used


def test_a_name_that_a_template_lacks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernel.cu.j2").write_text("${no_such_name}")
    monkeypatch.setenv(emit.TEMPLATES_VARIABLE, str(tmp_path))
    with pytest.raises(jinja2.UndefinedError, match="no_such_name"):
        emit.render_kernel(all_specs()[0])


def test_asm_operand_lists_are_no_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'asm("{%0, %1}, {{%2}}; // {# #}");\n'
    (tmp_path / "kernel.cu.j2").write_text(text)
    monkeypatch.setenv(emit.TEMPLATES_VARIABLE, str(tmp_path))
    assert emit.render_kernel(all_specs()[0]) == text


def test_a_file_is_written_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.cu"
    assert write_if_changed(path, "one")
    os.utime(path, ns=(1, 1))
    assert not write_if_changed(path, "one")
    assert path.stat().st_mtime_ns == 1
    assert write_if_changed(path, "two")
    assert path.read_text() == "two"
    assert [item.name for item in path.parent.iterdir()] == ["b.cu"]
