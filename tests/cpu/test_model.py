"""``build.py --model``: which kernels the config.json of a model asks for, why, and what is refused."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from skimattn.codegen import cli, model
from skimattn.codegen.arch import ARCHS
from skimattn.codegen.errors import ArgumentError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 8.0},
    "torch_dtype": "bfloat16",
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 4096}
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_size": 3584,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "torch_dtype": "float16",
}
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "dtype": "bfloat16",
    "text_config": {
        "attn_logit_softcapping": None,
        "head_dim": 256,
        "hidden_size": 2560,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_attention_heads": 16},
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "dtype": "torch.bfloat16",
    "head_dim": 64,
    "hidden_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "quantization_config": {"quant_method": "mxfp4"},
    "sliding_window": 128,
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "head_dim": 64,  # that of the rope part, as newer files have it
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "qk_head_dim": 192,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
}

DECODED = {"d192v128": "d256"}  # by kernels of more columns


def names(dtypes: str, dims: str, masks: str, more: str = "") -> set[str]:
    """The names of kernels of both architectures, in every layout and kind, with those that decode."""
    decoded = DECODED.get(dims, dims)
    phases = [(arch, *phase) for arch in ARCHS for phase in (("prefill", dims), ("decode", decoded))]
    kinds, paged = ("dense", "skip", "stat"), ("", "_paged")
    parts = product(phases, dtypes.split(), masks.split(), kinds, paged)
    attending = {f"skim_{arch}_{phase}_{t}_{d}_{m}_{kind}{p}{more}" for (arch, phase, d), t, m, kind, p in parts}
    return attending | {f"skim_{arch}_combine_{t}_{decoded}_full_dense" for arch in ARCHS for t in dtypes.split()}


@pytest.mark.parametrize(
    ("config", "wanted", "reason"),
    [
        (LLAMA, names("bf16", "d128", "causal"), "mask causal: no sliding_window is in use"),
        (MISTRAL, names("bf16", "d128", "causal window"), "mask causal, window: sliding_window; causal too, as no lay"),
        (GEMMA2, names("fp16", "d256", "causal window", "_softcap"), "softcap yes: attn_logit_softcapping; alibi no"),
        (GEMMA3, names("bf16", "d256", "causal window"), "not read: vision_config; kernels of theirs compile on first"),
        (GPT_OSS, names("bf16", "d64", "causal window"), "quantization_config: of weights; for q, k and v of 8 bits"),
        (
            DEEPSEEK,
            names("bf16", "d192v128", "causal"),
            "head_dim 192, of v 128, on kernels of 192, 128: qk_nope",
        ),
    ],
    ids=["Llama", "Mistral", "Gemma-2", "Gemma-3", "GPT-OSS", "DeepSeek"],
)
def test_models(config: dict[str, Any], wanted: set[str], reason: str) -> None:
    need = model.needed(config)
    assert {spec.name for spec in need.specs} == wanted and len(need.specs) == len(wanted)
    assert sum(line.startswith(reason) for line in need.reasons) == 1, need.reasons


CAUSAL = names("bf16", "d128", "causal")


def narrow(columns: str) -> set[str]:
    """Of calls with 80 or 96 columns, or a few less: SM90 has prefill kernels of their own for them."""
    return {name.replace("d128", columns) if name.startswith("skim_sm90_prefill") else name for name in CAUSAL}


@pytest.mark.parametrize(
    ("more", "wanted", "reason"),
    [
        ({"torch_dtype": None}, names("bf16 fp16", "d128", "causal"), "dtype bf16 and fp16: neither dtype nor torch_d"),
        ({"dtype": "float16"}, names("fp16", "d128", "causal"), "dtype fp16: dtype"),
        (
            {"head_dim": 96},
            narrow("d96"),
            "head_dim 96, of v 96, on kernels of 96, 96 (sm90) or 128, 128 (sm100): head_dim",
        ),
        ({"head_dim": 192, "v_head_dim": 128}, names("bf16", "d192v128", "causal"), "head_dim 192, of v 128"),
        (
            {"hidden_size": 2560},
            narrow("d80"),
            "head_dim 80, of v 80, on kernels of 80, 80 (sm90) or 128, 128 (sm100): hidden",
        ),
        (
            {"sliding_window": 64, "use_sliding_window": False},
            CAUSAL,
            "mask causal: no sliding",
        ),
        (
            {"sliding_window": 64, "layer_types": ["full_attention"]},
            CAUSAL,
            "mask causal: laye",
        ),
        (
            {"sliding_window": 64, "layer_types": ["sliding_attention"] * 2},
            names("bf16", "d128", "window"),
            "mask window: layer_types has sliding_attention",
        ),
        (
            {"attention_chunk_size": 8192, "layer_types": ["chunked_attention", "full_attention"]},
            names("bf16", "d128", "causal chunked"),
            "mask causal, chunked: layer_types has chunked_attention, full_attention",
        ),
        (
            {"attention_chunk_size": 8192},
            names("bf16", "d128", "causal chunked"),
            "mask causal, chunked: attention_chun",
        ),
        (
            {"layer_types": ["linear_attention", "full_attention"]},
            CAUSAL,
            "mask causal: layer",
        ),
        ({"linear_key_head_dim": 128}, CAUSAL, "head_dim 128"),
        ({"alibi": True}, names("bf16", "d128", "causal", "_alibi"), "softcap no: attn_logit_softcapping; alibi yes"),
        ({"position_embedding_type": "alibi"}, names("bf16", "d128", "causal", "_alibi"), "softcap no"),
        ({"attn_config": {"alibi": True}}, names("bf16", "d128", "causal", "_alibi"), "softcap no"),
        ({"architectures": ["MistralModel"]}, names("bf16", "d128", "causal full"), "mask causal, full: no sliding_wi"),
        ({"cross_attention_layers": [3]}, names("bf16", "d128", "causal full"), "mask causal, full: no sliding_window"),
        ({"architectures": None}, CAUSAL, "mask causal"),
        ({"is_causal": False}, names("bf16", "d128", "causal full"), "mask causal, full: no sliding_window is in use;"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_decides(more: dict[str, Any], wanted: set[str], reason: str) -> None:
    need = model.needed({**LLAMA, **more})
    assert {spec.name for spec in need.specs} == wanted
    assert any(line.startswith(reason) for line in need.reasons), need.reasons


def test_the_reasons_say_that_decode_is_among_them() -> None:
    assert any(
        line.startswith("prefill, and decode with what combines its parts, wh") for line in model.needed(LLAMA).reasons
    )


def test_older_names_of_sizes() -> None:
    bloom = {"model_type": "bloom", "n_head": 32, "n_embd": 2048, "torch_dtype": "float16"}
    assert {spec.name for spec in model.needed(bloom).specs} == names("fp16", "d64", "causal", "_alibi")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"torch_dtype": "float32"}, "torch_dtype: expected bfloat16 or float16, in which it will run (got 'floa"),
        ({"num_attention_heads": 33}, "num_attention_heads: expected a multiple of num_key_value_heads (8) (got 33)"),
        ({"hidden_size": None}, "head_dim: expected it, or a hidden_size that num_attention_heads divides (got hidden"),
        ({"hidden_size": 4100}, "head_dim: expected it, or a hidden_size that num_attention_heads divides (got hidden"),
        ({"head_dim": 100}, "head_dim: expected a multiple of 8 (got 100)"),
        ({"head_dim": 512}, "head_dim: expected at most (256, 256), of q and k and of v (got (512, 512))"),
        ({"head_dim": [64, 128]}, "head_dim: expected a number, finite and not negative (got [64, 128])"),
        ({"head_dim": float("nan")}, "head_dim: expected a number, finite and not negative (got nan)"),
        ({"head_dim": 64.5}, "head_dim: expected a whole number (got 64.5)"),
        ({"attn_logit_softcapping": True}, "attn_logit_softcapping: expected a number, finite and not negative (got T"),
        (
            {"global_head_dim": 512},
            "global_head_dim: expected only head dims of known meaning (head_dim, qk_",
        ),
        ({"index_head_dim": 128}, "index_head_dim: expected only head dims of known meaning"),
        ({"kv_lora_rank": 512}, "qk_nope_head_dim, qk_rope_head_dim, v_head_dim: expected all three of MLA (got (0, 0"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: expected false"),
        ({"layer_types": ["hybrid"]}, "layer_types: expected only full_attention, attention, sliding_attention, chunk"),
        ({"layer_types": ["mamba"]}, "layer_types: expected layers with attention (got mamba)"),
        ({"layer_types": "full"}, "layer_types: expected a list of names (got 'full')"),
        (
            {"layer_types": ["sliding_attention"]},
            "sliding_window: expected a number, as layer_types has sliding_attention (got None)",
        ),
        ({"use_bidirectional_attention": "vision"}, "use_bidirectional_attention: expected true, false or a list of"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_known_is_refused_by_name(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        model.needed({**LLAMA, **more})
    assert str(refused.value).startswith(words)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.command, cli.expand([str(argument) for argument in arguments]))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GEMMA3))
    return path


@pytest.mark.parametrize("given", ["the file", "its folder"])
def test_the_command_says_what_was_chosen_and_why(given: str, config: Path, tmp_path: Path) -> None:
    path = config if given == "the file" else tmp_path
    done = invoke("--model", path, "--sm", "90", "--dry-run", "--out", tmp_path / "out")
    lines = done.output.splitlines()
    assert "mask causal, window: layer_types has sliding_attention, full_attention" in lines
    wanted = {name for name in names("bf16", "d256", "causal window") if "_sm90_" in name}
    assert {line.removesuffix(": not built") for line in lines if line.startswith("skim_")} == wanted
    assert lines[-1].startswith("25 of 25 kernels would be compiled") and not (tmp_path / "out").exists()


def test_the_command_lists_and_narrows(config: Path, tmp_path: Path) -> None:
    done = invoke(
        "--model",
        config,
        "--sm",
        "90",
        "100",
        "--list",
        "--json",
        "--only",
        "skip=stat",
        "mask=window",
        "--out",
        tmp_path / "out",
    )
    listed = {row["name"] for row in json.loads(done.stdout)}
    assert listed == {name for name in names("bf16", "d256", "window") if "_stat" in name or "_combine_" in name}
    assert "dtype bf16: dtype\n" in done.stderr
    done = invoke("--model", config, "--sm", "90", "--only", "dtype=fp16")
    assert done.exit_code == 2 and "nothing that the model needs matches --sm 90 --only dtype=fp16" in done.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Error: --model: expected a config.json (got {path}: not JSON: "),
        ("[]", "Error: --model: expected a config.json, which holds an object (got {path}: list)"),
        (b"\xff", "Error: --model: expected a config.json (got {path}: not JSON: "),
        (
            '{"head_dim": 128, "torch_dtype": "int8"}',
            "Error: --model {path}: torch_dtype: expected bfloat16 or float16",
        ),
    ],
)
def test_files_that_are_none_are_one_line(text: str | bytes, words: str, config: Path) -> None:
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = invoke("--model", config)
    assert done.exit_code == 1 and done.output.count("\n") == 1
    assert done.output.startswith(words.format(path=config))
    config.unlink()
    done = invoke("--model", config.parent)
    assert (done.exit_code, done.output) == (1, f"Error: {config}: No such file or directory\n")
