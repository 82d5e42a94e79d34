"""What attention's kernels take inside vLLM: ``python -m bench.serve_profile JOB OUT``, an engine in this process.

A job has ``model``, ``config``, ``requests`` (a file), ``concurrency``, ``steps``, ``cache_gb``, ``longest`` and
``device``; OUT gets milliseconds by kernel of one prompt (``prefill``) and of one step of all requests (``decode``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .serve_models import read_requests
from .serve_servers import UNASKED

_OURS = "skim_"  # what our kernels' names begin with


def attention_ms(kernels: Mapping[str, float], phase: str) -> float | None:
    """Of our kernels of a phase, which is in their names; None: there were none, such as on a CPU."""
    found = [ms for name, ms in kernels.items() if _OURS in name and f"_{phase}_" in name]
    return sum(found) if found else None


def kernel_times(events: Any) -> dict[str, float]:
    """Milliseconds on the device by kernel, of a profiler's averages."""
    found: dict[str, float] = {}
    for event in events:
        if event.self_device_time_total > 0:
            found[event.key] = found.get(event.key, 0.0) + event.self_device_time_total / 1e3
    return found


def _profiled(call: Callable[[], object], device: str) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as seen:
        call()
    return kernel_times(seen.key_averages())


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Start the engine, and look at both phases."""
    from skimattn.integrations.vllm import register
    from vllm import LLM, SamplingParams

    register()
    options: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": job["longest"], "max_num_seqs": job["concurrency"]}
    if job["device"] == "cuda":
        options["attention_config"] = {"backend": "CUSTOM"}
        options |= {"kv_cache_memory_bytes": int(job["cache_gb"] * 1e9), "gpu_memory_utilization": float(UNASKED)}
    else:
        options["enforce_eager"] = True
    engine = LLM(
        job["model"],
        enable_prefix_caching=True,  # so that steps can be looked at without their prompts
        additional_config={"skimattn": {"config": job["config"] or False}},
        **options,
    )
    prompts = [row["prompt"] for row in read_requests(Path(job["requests"]))][: job["concurrency"]]

    def generate(some: list[list[int]], tokens: int) -> None:
        how = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine.generate([{"prompt_token_ids": prompt} for prompt in some], how, use_tqdm=False)

    generate([[*prompts[0][:1], *prompts[0][:0:-1]]], 2)  # warm, with another prompt of that length
    found = {"prefill": _profiled(lambda: generate(prompts[:1], 1), job["device"])}
    generate(prompts, 2)
    steps = job["steps"]
    # One token comes with what is left of the prompts; each further one is a step.
    decode = _profiled(lambda: generate(prompts, 1 + steps), job["device"])
    found["decode"] = {name: ms / steps for name, ms in decode.items()}
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
