"""The small public functions, where kernels come from, and what is logged."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import skimattn
import torch
from skimattn import (
    ArgumentError,
    BuildError,
    NoKernelError,
    Params,
    attention,
    explain,
    launch,
    pack_mask,
    sparsity,
    threshold_from_scale_factor,
    variants,
)
from skimattn._select import kernels
from skimattn.codegen import matrix, metadata, pipeline, sets
from skimattn.codegen.spec import KernelSpec
from skimattn.reference import attention as reference

SPEC = KernelSpec("sm90", "prefill", "bf16", "bf16", 64, 64, "causal", False, "dense", False, False)


def call(**arguments: object) -> Params:
    """Of more rows than are decoded."""
    return call_of(80, 80, **arguments)


def call_of(rows: int, keys: int, **arguments: object) -> Params:
    q, kv = torch.zeros(1, rows, 2, 64).bfloat16(), torch.zeros(1, keys, 2, 64).bfloat16()
    return Params(q, kv, kv.clone(), **{"mask": "causal", **arguments})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of kernels that nothing is built in yet."""
    monkeypatch.setenv(kernels.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def put(folder: Path, cubin: bytes = b"a cubin", source_sha256: str | None = None) -> metadata.Kernel:
    """Write the kernel of SPEC as a build would."""
    row = dataclasses.replace(
        kernels.unbuilt_row(SPEC),
        cubin="one.cubin",
        cubin_sha256=hashlib.sha256(cubin).hexdigest(),
        registers=168,
        source_sha256=source_sha256 or pipeline.Sources().unit(SPEC).source_sha256,
    )
    (folder / "one.cubin").write_bytes(cubin)
    (folder / "metadata.json").write_text(metadata.dump([row]))
    return row


@pytest.mark.parametrize(
    ("factor", "len_k", "wanted"),
    [(100.0, 1000, 0.1), (1, 2, 0.5), (0.0, 7, 0.0), (100.0, 100, 0.0), (100.0, 99, 0.0), (5.0, 0, 0.0), (0.0, 0, 0.0)],
)
def test_thresholds_from_a_factor(factor: float, len_k: int, wanted: float) -> None:
    assert threshold_from_scale_factor(factor, len_k) == wanted
    lengths = torch.tensor([len_k, 1000], dtype=torch.int32)
    result = threshold_from_scale_factor(factor, lengths)
    assert result.dtype == torch.float32 and result.shape == (2,)
    assert result[0].item() == pytest.approx(wanted)


def test_thresholds_from_a_factor_per_request() -> None:
    factors, lengths = torch.tensor([10.0, 2000.0, math.nan]), torch.tensor([100, 1000, 10])
    assert threshold_from_scale_factor(factors, lengths).tolist() == pytest.approx([0.1, 0.0, 0.0])


@pytest.mark.parametrize(
    ("factor", "len_k", "text"),
    [
        (-1.0, 5, r"^factor: .*\(got -1.0\)"),
        (math.nan, 5, r"^factor: .*\(got nan\)"),
        (math.inf, 5, r"^factor: .*\(got inf\)"),
        (True, 5, r"^factor: .*\(got bool True\)"),
        ("1", 5, r"^factor: .*\(got str '1'\)"),
        (1.0, -5, r"^len_k: .*\(got -5\)"),
        (1.0, None, r"^len_k: .*\(got None\)"),
        (torch.ones(2), 5, r"^len_k: expected a tensor.*\(got int\)"),
    ],
)
def test_wrong_factors_and_lengths(factor: float, len_k: int, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        threshold_from_scale_factor(factor, len_k)


def test_sparsity_of_counts() -> None:
    assert sparsity(torch.tensor([[4, 1], [0, 0], [3, 3]])).tolist() == [0.25, 0.0, 1.0]
    for wrong in (torch.tensor([4.0, 1.0]), torch.tensor([1, 2, 3]), [4, 1]):
        with pytest.raises(ArgumentError, match=r"^stats: expected int64 counts"):
            sparsity(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [1, 8, 31, 32, 33, 100])
def test_packed_masks_are_little_endian(keys: int) -> None:
    mask = torch.rand(3, 5, keys, generator=torch.Generator().manual_seed(keys)) < 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 5, 4 * -(-keys // 32))
    for key in range(keys):
        assert torch.equal((packed[..., key // 8] >> (key % 8) & 1).bool(), mask[..., key])


def test_public_names() -> None:
    assert all(hasattr(skimattn, name) for name in skimattn.__all__)
    assert skimattn.__version__[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "mask", "window"),
    [
        ({}, "full", (-1, -1)),
        ({"causal": True}, "causal", (-1, -1)),
        ({"window_size": (3, 2)}, "window", (3, 2)),
        ({"window_size": (3, -1), "causal": True}, "window", (3, 0)),
        ({"mask": "chunked", "chunk_size": 4}, "chunked", (-1, -1)),
    ],
)
def test_attention_in_one_line(
    arguments: dict[str, object], mask: str, window: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from skimattn import api

    seen: list[Params] = []
    monkeypatch.setattr(api, "launch", lambda params, stream: seen.append(params))
    q = torch.zeros(1, 8, 2, 64).bfloat16()
    attention(q, q, q, **arguments)  # type: ignore[arg-type]
    assert (seen[0].mask, seen[0].window_size) == (mask, window)


def test_attention_refuses_contradictions() -> None:
    q = torch.zeros(1, 8, 2, 64).bfloat16()
    with pytest.raises(ArgumentError, match=r"^mask: expected no mask with causal=True \(got 'full'\)"):
        attention(q, q, q, causal=True, mask="full")
    with pytest.raises(ArgumentError, match=r"^window_size: expected .*causal=True \(got \(3, 2\)\)"):
        attention(q, q, q, causal=True, window_size=(3, 2))
    with pytest.raises(TypeError, match="dropout"):
        attention(q, q, q, dropout=0.1)


def test_variants_lists_the_whole_matrix(folder: Path) -> None:
    put(folder)
    rows = variants()
    assert len(rows) == len(matrix.all_specs())
    (built,) = [row for row in rows if row["built"]]
    assert (built["name"], built["registers"]) == (SPEC.name, 168)
    assert all(row["tile"] == [row["tile_m"], row["tile_n"]] for row in rows)
    names = (
        "name key arch phase dtype out_dtype head_dim head_dim_v mask paged skip softcap alibi tile group_rows order"
    )
    names += " threads registers spill_bytes smem_bytes tmem_columns verified cubin_sha256 built stale"
    assert set(names.split()) <= set(rows[0])


def test_explain_a_call_on_the_cpu(folder: Path) -> None:
    explanation = explain(call(skip_softmax_threshold=0.5))
    assert explanation.accepted and explanation.path == "reference"
    assert explanation.kernel == "skim_sm90_prefill_bf16_d64_causal_skip" and not explanation.built
    row = kernels.unbuilt_row(explanation.spec)  # type: ignore[arg-type]
    assert (explanation.tile, explanation.order) == ((row.tile_m, row.tile_n), row.order)
    text = str(explanation)
    assert "reference" in text and "skip, since skip_softmax_threshold is given" in text


# Rows, keys and arguments of calls with 2 heads on 2, and their phases.
PHASES = [
    (80, 80, {}, {"prefill"}),
    (8, 80, {}, {"decode"}),
    (80, 80 * 16, {}, {"decode"}),
    (80, 80 * 16 - 1, {}, {"prefill"}),
    (80, 80 * 16, {"seqused_k": torch.tensor([700], dtype=torch.int32)}, {"prefill", "decode"}),
    (80, 80, {"seqused_q": torch.tensor([3], dtype=torch.int32)}, {"prefill", "decode"}),
]


@pytest.mark.parametrize(("rows", "keys", "arguments", "phases"), PHASES)
def test_explain_names_the_kernel_of_every_phase(
    rows: int, keys: int, arguments: dict[str, object], phases: set[str], folder: Path
) -> None:
    explanation = explain(call_of(rows, keys, **arguments))
    (phase,) = [line for line in explanation.trace if line.startswith("phase: ")]
    words = {frozenset(["prefill"]): "phase: prefill, by the", frozenset(["decode"]): "phase: decode, by the rows"}
    assert phase.startswith(words.get(frozenset(phases), "phase: decode or prefill, by the rows and keys of each requ"))
    lines = [line for line in explanation.trace if line.startswith("kernel: ")]
    tiles = {"prefill": "192x128, groups of 64, sink_first order", "decode": "64x128, groups of 64, reverse order"}
    wanted = [name for name in tiles if name in phases]
    assert lines == [f"kernel: skim_sm90_{name}_bf16_d64_causal_dense, tile {tiles[name]}" for name in wanted]
    assert explanation.kernel == f"skim_sm90_{wanted[0]}_bf16_d64_causal_dense"
    assert explanation.order == tiles[wanted[0]].split()[-2] and str(explanation).count("path: ") == len(wanted)


def test_explain_a_refusal() -> None:
    explanation = explain(call(softmax_scale=-1.0))
    assert not explanation.accepted and explanation.path == "none"
    assert explanation.reason.startswith("softmax_scale: expected")
    assert str(explanation).endswith(f"rejected: {explanation.reason}")


def test_explain_fields(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder)
    fields = {name: value for name, value in SPEC.values.items() if name not in ("arch", "phase")}
    assert explain(**fields).built and f"built in {folder}" in str(explain(**fields))
    assert "compiled on first use" in str(explain(mask="full"))
    monkeypatch.setenv(kernels.JIT_VARIABLE, "0")
    refused = explain(mask="full")
    assert not refused.accepted and "python build.py --sm 90" in str(refused)
    assert "out-dtype" in explain(out_dtype="fp16").reason
    assert "sm80" in explain(arch="sm80").reason
    with pytest.raises(ArgumentError, match="unknown field 'masc'"):
        explain(masc="full")
    with pytest.raises(ArgumentError, match="both or neither"):
        explain()


def test_a_built_kernel_is_taken_from_the_folder(folder: Path) -> None:
    row = put(folder)
    assert kernels.obtain(SPEC) == (row, b"a cubin")


def test_a_kernel_of_other_sources_is_used_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(folder)
    with caplog.at_level(logging.WARNING, "skimattn"):
        kernels.obtain(SPEC)
        assert not caplog.records
        row = put(folder, source_sha256="0" * 64)
        assert kernels.obtain(SPEC) == (row, b"a cubin")
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith(f"{SPEC.name}: {folder} holds it as other sources than those of now made it")
    assert text.endswith(f"to renew it: {sets.build_command(SPEC)}")
    assert not any(row["built"] for row in variants())
    assert [row["name"] for row in variants() if row["stale"]] == [SPEC.name]
    explanation = explain(**{name: value for name, value in SPEC.values.items() if name != "phase"})
    assert explanation.accepted and not explanation.built
    assert f"path: cuda, stale in {folder}: built from other sources than those of now" in explanation.trace


def test_explain_says_how_far_kernels_were_tried(folder: Path) -> None:
    for arch, words in (("sm90", "run on an H200 and an H100"), ("sm100", "not run on Blackwell")):
        explanation = explain(arch=arch)
        assert str(explanation.verified).endswith(words) and f"verified: {explanation.verified}" in explanation.trace
    assert explain(arch="sm80").verified is None


def test_damaged_cubins_are_refused_by_name(folder: Path) -> None:
    put(folder)
    for damage in (b"a cubi", b"A cubin", b""):
        (folder / "one.cubin").write_bytes(damage)
        with pytest.raises(BuildError, match=rf"^{SPEC.name}: cubin .*one.cubin has sha256"):
            kernels.obtain(SPEC)
    (folder / "one.cubin").unlink()
    with pytest.raises(BuildError, match=r"one.cubin is missing"):
        kernels.obtain(SPEC)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"package": "other"}', "\x00\x01"])
def test_damaged_metadata_is_refused_by_name(folder: Path, text: str) -> None:
    (folder / "metadata.json").write_text(text)
    with pytest.raises(BuildError, match=r"metadata.json"):
        kernels.obtain(SPEC)


def test_truncated_and_changed_metadata_is_refused(folder: Path) -> None:
    put(folder)
    whole = (folder / "metadata.json").read_text()
    for text in (whole[:-10], whole.replace("168", "167"), whole.replace('"format": 4', '"format": 9')):
        assert text != whole
        (folder / "metadata.json").write_text(text)
        with pytest.raises(BuildError, match=r"metadata.json"):
            variants()


def test_without_compiling_a_missing_kernel_is_no_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.JIT_VARIABLE, "0")
    with pytest.raises(NoKernelError, match=rf"^{SPEC.name}: not built, and SKIMATTN_JIT=0 .*; no kernels are built"):
        kernels.obtain(SPEC)


def test_a_missing_kernel_is_compiled_on_first_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skimattn.codegen import jit

    monkeypatch.setattr(jit, "compile_spec", lambda spec: (kernels.unbuilt_row(spec), b"compiled"))
    assert kernels.obtain(SPEC) == (kernels.unbuilt_row(SPEC), b"compiled")


def test_the_reference_is_announced_once_per_kernel(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_announced", set())
    with caplog.at_level(logging.INFO, "skimattn"):
        launch(call())
        launch(call())
        launch(call(mask="full"))
    texts = [record.getMessage() for record in caplog.records]
    assert [text.startswith("CPU tensors: the reference computes") for text in texts] == [True, True]
    assert SPEC.name in texts[0]


def test_importing_needs_neither_torch_nor_cuda() -> None:
    script = "import sys, skimattn, skimattn.codegen.spec; print('torch' in sys.modules, 'cuda' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
