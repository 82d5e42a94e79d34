"""The command line: every option, and every way to get one wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from skimattn.codegen import cli, places, sets
from skimattn.codegen.arch import ARCHS
from skimattn.codegen.metadata import Kernel

from tests.helpers.standin import ROOT, run


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.command, cli.expand(arguments))


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("--sm 90 100", "--sm 90 --sm 100"),
        ("--sm 90 100 --list", "--sm 90 --sm 100 --list"),
        ("--only dtype=bf16,fp16 head_dim=128 --jobs 2", "--only dtype=bf16,fp16 --only head_dim=128 --jobs 2"),
        ("--sm=90 100", "--sm 90 --sm 100"),
        ("--only a=1 --only b=2", "--only a=1 --only b=2"),
        ("--out x y", "--out x y"),
        ("--list --sm 90", "--list --sm 90"),
    ],
)
def test_one_flag_takes_several_values(given: str, expanded: str) -> None:
    assert cli.expand(given.split()) == expanded.split()


@pytest.mark.parametrize("given", ["--sm", "--sm --list", "--only --sm 90", "--list --explain"])
def test_a_flag_without_values_is_refused(given: str) -> None:
    with pytest.raises(click.UsageError, match="expects at least one value"):
        cli.expand(given.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--sm 90 120", "--sm 120: sm120 has no kernel specs yet (specs exist for sm90, sm100); nothing was built"),
        ("--sm 90,103", "--sm 103: sm103 has no kernel specs yet"),
        (
            "--sm 100 --only dtype=e4m3 phase=transpose",
            "nothing in --set default matches --sm 100 --only dtype=e4m3 phase=transpose: kernels of sm90 do",
        ),
        ("--sm 100 --only arch=sm90 softcap=true", "kernels of sm90 do"),
        ("--sm 90 --only dtype=e4m3 head_dim=64 head_dim_v=128", "no kernel of the matrix does, see --explain"),
        ("--sm hopper", "--sm: expected an architecture such as 90 (got 'hopper')"),
        ("--only colour=red", "--only: unknown field 'colour' (expected one of arch"),
        ("--only dtype", "--only: expected FIELD=VALUE (got 'dtype')"),
        ("--only dtype=", "--only: expected FIELD=VALUE (got 'dtype=')"),
        ("--only dtype=fp8", "--only: dtype: expected one of bf16, fp16, e4m3 (got 'fp8')"),
        ("--only head_dim=88", "--only: head_dim: expected one of 64, 128, 192, 256, 512, 576, 96, 80 (got '88')"),
        ("--only softcap=true", "nothing in --set default matches --only softcap=true: --set full has"),
        ("--only head_dim=64 head_dim_v=128", "no kernel of the matrix does, see --explain"),
        ("--set some", "Invalid value for '--set'"),
        ("--compiler clang", "Invalid value for '--compiler'"),
        ("--jobs 0", "Invalid value for '--jobs'"),
        ("--json", "--json belongs to --list; nothing was done"),
        ("--json --dry-run", "--json belongs to --list"),
        ("--clean --list", "--clean does not go with --list"),
        ("--clean --only dtype=bf16", "--clean does not go with --only"),
        ("--clean --set smoke --jobs 2", "--clean does not go with --set, --jobs"),
        ("--clean --model .", "--clean does not go with --model"),
        ("--clean --lineinfo --compiler nvcc", "--clean does not go with --compiler, --lineinfo"),
        ("--clean --sm 120", "--sm 120: sm120 has no kernel specs yet"),
        ("--list --dry-run", "--list does not go with --dry-run"),
        ("--list --jobs 1 --compiler nvrtc", "--list does not go with --compiler, --jobs"),
        ("--explain mask=full --clean", "--explain does not go with --out, --clean"),
        ("--model . --set full", "--model does not go with --set"),
        ("--model ./none", "Path './none' does not exist"),
        ("--list stray", "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_refused_with_the_reason(
    arguments: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "run_build", lambda *_: pytest.fail("it builds"))
    result = invoke(*arguments.split(), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("mask=full,causal", "--explain: mask: expected one value (got full, causal)"),
        ("colour=red", "--explain: unknown field 'colour'"),
        ("mask=full --sm 90 --only skip=skip", "--explain does not go with --sm, --only; nothing was done"),
        ("mask=full --list --json", "--explain does not go with --list, --json"),
        ("mask=full --dry-run", "--explain does not go with --dry-run"),
    ],
)
def test_wrong_usage_of_explain(arguments: str, words: str) -> None:
    result = invoke("--explain", *arguments.split())
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_every_option_goes_with_something() -> None:
    names = {parameter.name for parameter in cli.command.params}
    assert names == {name for row in (*cli._GOES_BY.values(), cli._BUILD) for name in row}


def test_spellings_of_an_architecture() -> None:
    for text in ("90", "90a", "sm90", "sm_90", "sm_90a"):
        assert cli.parse_arch(text) == "sm90"
    for text in ("100", "100a", "sm100", "sm_100a"):
        assert cli.parse_arch(text) == "sm100"


def test_list_as_json(tmp_path: Path) -> None:
    result = invoke("--list", "--json", "--out", str(tmp_path))
    rows = json.loads(result.output)
    assert [row["name"] for row in rows] == [spec.name for spec in sets.specs("default")]
    assert {name for name in Kernel.__annotations__ if name not in ("cubin", "source_sha256", "compiler")} <= set(
        rows[0]
    )
    assert not any(row["built"] for row in rows)


def test_list_as_a_table(tmp_path: Path) -> None:
    result = invoke("--list", "--set", "smoke", "--sm", "90", "--out", str(tmp_path))
    lines = result.output.splitlines()
    assert lines[0].split()[:3] == ["kernel", "tile", "group"]
    smoke = sets.specs("smoke", archs=["sm90"])
    tried = lines[len(smoke) + 1 : -1]
    assert tried == ["sm90: run on an H200 and an H100", "sm90 d80, d192 x 192: run on an H200"]
    assert lines[-1] == f"{len(smoke)} kernels, 0 built in {tmp_path}"


def test_list_keeps_what_only_names(tmp_path: Path) -> None:
    result = invoke(
        "--list", "--json", "--only", "dtype=bf16,fp16", "head_dim=128", "skip=stat", "--out", str(tmp_path)
    )
    rows = json.loads(result.output)
    assert {(row["head_dim"], row["skip"]) for row in rows if row["phase"] != "combine"} == {(128, "stat")}
    assert {row["dtype"] for row in rows} == {"bf16", "fp16"}
    combining = [row["name"] for row in rows if row["phase"] == "combine"]  # which no skip=stat names
    assert combining == [f"skim_{arch}_combine_{t}_d128_full_dense" for arch in ARCHS for t in ("bf16", "fp16")]


def test_explain_accepted() -> None:
    result = invoke("--explain", "mask=causal", "skip=stat", "softcap=true")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "accepted: skim_sm90_prefill_bf16_d128_causal_stat_softcap",
        "in sets: full",
        "verified: run on an H200 and an H100",
        "build it: python build.py --sm 90 --set full --only phase=prefill dtype=bf16 out_dtype=bf16 head_dim=128 "
        "head_dim_v=128 mask=causal paged=false skip=stat softcap=true alibi=false kv_dtype=same",
    ]


def test_explain_kernels_of_decode() -> None:
    result = invoke("--explain", "phase=decode", "mask=causal", "paged=true")
    assert result.output.splitlines()[:2] == [
        "accepted: skim_sm90_decode_bf16_d128_causal_dense_paged",
        "in sets: smoke, default, full",
    ]
    assert "build it: python build.py --sm 90 --only phase=decode dtype=bf16" in result.output
    result = invoke("--explain", "phase=decode", "kv_dtype=e4m3", "arch=sm100")
    assert result.exit_code == 1 and result.output.startswith("rejected by rule kv-dtype-arch: SM100 kernels convert")
    result = invoke("--explain", "phase=combine", "mask=causal")
    assert result.exit_code == 1 and result.output.startswith("rejected by rule combine-options: partial results are")


def test_explain_rejected() -> None:
    result = invoke("--explain", "dtype=bf16", "out_dtype=fp16")
    assert result.exit_code == 1
    assert result.output.startswith("rejected by rule out-dtype: 16-bit kernels write the type they read")
    assert run("--explain", "head_dim=88").returncode == 1


def test_a_damaged_metadata_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text("{")
    result = invoke("--list", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path}/metadata.json: not JSON" in result.output


def test_help_names_every_option() -> None:
    result = invoke("--help")
    options = [
        "sm",
        "set",
        "only",
        "compiler",
        "jobs",
        "out",
        "lineinfo",
        "dry-run",
        "list",
        "json",
        "explain",
        "clean",
        "model",
    ]
    for option in options:
        assert f"--{option}" in result.output


def test_the_exact_spelling_of_two_architectures(tmp_path: Path) -> None:
    done = run("--sm", "90", "100", "--dry-run", "--out", tmp_path / "out")
    assert done.returncode == 0
    for arch in ("sm90", "sm100"):
        wanted = {f"{spec.name}: not built" for spec in sets.specs("default", archs=[arch])}
        assert wanted and wanted <= set(done.stdout.splitlines())
    assert not (tmp_path / "out").exists()


def test_a_folder_that_calls_look_in_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(places.VARIABLE, raising=False)
    monkeypatch.setattr(places, "checkout", lambda: tmp_path / "checkout")
    assert f" 0 built in {tmp_path}/checkout/generated" in invoke("--list", "--set", "smoke").output
    monkeypatch.setenv(places.VARIABLE, "of mine")
    assert f" 0 built in {tmp_path}/of mine" in invoke("--list", "--set", "smoke").output


def test_the_build_does_not_import_torch() -> None:
    code = "import sys, skimattn.codegen.cli, skimattn.codegen.jit; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
