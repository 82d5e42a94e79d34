"""Runs SGLang in processes of its own: ``run.py JOBS OUT``, both JSON.

A job is an engine: its arguments, and the prompts of each ``generate``. Its result is, of each ``generate``, tokens and
the two best log-probabilities of every step, unless it says ``"best": false``: SGLang mixes prompts with decoding only
where nobody asks for those. An engine that does not start ends this process, and says why.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torchvision_ops  # noqa: F401  # here, so that every process that is spawned has it


def run(job: dict[str, Any]) -> dict[str, Any]:
    from sglang.srt.entrypoints.engine import Engine
    from skimattn.integrations.sglang import tiles

    options = {
        "device": "cpu",
        "dtype": "bfloat16",
        "page_size": 128,
        "context_length": 4352,
        "max_running_requests": 4,
    }
    options |= {"max_total_tokens": 16384, "log_level": "error", "random_seed": 1}
    engine = Engine(**(options | job["engine"]))
    how = {"temperature": 0, "max_new_tokens": job["new"], "ignore_eos": True}
    asked: dict[str, Any] = {"return_logprob": True, "top_logprobs_num": 2} if job.get("best", True) else {}
    made = []
    for prompts in job["generate"]:
        out = engine.generate(input_ids=prompts, sampling_params=how, **asked)
        made.append([_result(one) for one in out])
    time.sleep(1.5)  # tiles are half a second old at most
    counted = tiles()
    engine.shutdown()
    return {"made": made, "tiles": counted}


def _result(one: dict[str, Any]) -> dict[str, Any]:
    about = one["meta_info"]
    best = [[found[0] for found in step] for step in about.get("output_top_logprobs", ())]
    return {"tokens": one["output_ids"], "best": best, "cached": about["cached_tokens"]}


if __name__ == "__main__":
    jobs, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps([run(job) for job in json.loads(jobs.read_text())]))
