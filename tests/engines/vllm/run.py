"""Runs vLLM in a process of its own, as its back ends are chosen once in a process: ``run.py JOBS OUT``, both JSON.

A job is an engine: its arguments, and the prompts of each ``generate``. Its result is, of each ``generate``, tokens and
the two best log-probabilities of every step; or, where the engine does not start, what it says.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any


def run(job: dict[str, Any]) -> dict[str, Any]:
    from skimattn.integrations.vllm import tiles
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    options = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 4352, "max_num_seqs": 4}
    try:
        engine = LLM(**(options | job["engine"]))
    except Exception as error:
        return {"refused": str(error)}
    how = SamplingParams(temperature=0, max_tokens=job["new"], logprobs=2, ignore_eos=True, detokenize=False)
    made = []
    for prompts in job["generate"]:
        out = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], how, use_tqdm=False)
        made.append([_result(one) for one in out])
    time.sleep(1.0)  # tiles are half a second old at most
    counted = tiles()
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
    return {"made": made, "tiles": counted}


def _result(one: Any) -> dict[str, Any]:
    best = [sorted((found.logprob for found in step.values()), reverse=True)[:2] for step in one.outputs[0].logprobs]
    return {"tokens": list(one.outputs[0].token_ids), "best": best, "cached": one.num_cached_tokens}


if __name__ == "__main__":
    jobs, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps([run(job) for job in json.loads(jobs.read_text())]))
