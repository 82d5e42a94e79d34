"""vLLM's benchmark client in a process of its own: ``python -m bench.serve_client``, a job a line on standard input.

A job is the command line of ``vllm bench serve`` as a list; its answer, a line that begins with a mark, is what the
client measured, or why it could not. Importing the client takes longer than many runs, so one process does them all.
Requests are read from the file of ``--dataset-path`` as token ids: the client's own readers make texts of them, or need
pandas.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .serve_models import read_requests

MARK = "@bench-serve "


def replayed(options: Any, tokenizer: Any) -> list[Any]:
    """The requests of a file, as the client's own ``get_samples`` returns them."""
    del tokenizer
    from vllm.benchmarks.datasets import SampleRequest

    rows = read_requests(Path(options.dataset_path))[: options.num_prompts]
    return [
        SampleRequest(
            prompt=row["prompt"],
            prompt_len=len(row["prompt"]),
            expected_output_len=row["output_tokens"],
            request_id=str(index),
        )
        for index, row in enumerate(rows)
    ]


def main() -> None:
    """Answer jobs until there are no more."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    serve.get_samples = replayed
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    for line in sys.stdin:
        try:
            found = serve.main(parser.parse_args(json.loads(line)))
            answer = {name: found[name] for name in ("ttfts", "itls", "output_lens", "errors", "duration")}
        except Exception as error:  # whatever the client raises is this job's answer
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(f"\n{MARK}{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()
