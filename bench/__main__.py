"""``python -m bench COMMAND``: one module per command, imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "prefill": "speed beside the peers, dense and with skipped tiles (needs a GPU)",
    "rows": "prefill of many kinds beside the peers, with what must be reached (needs a GPU)",
    "decode": "decode steps beside FlashAttention-3 and others, dense and with skipped tiles (needs a GPU)",
    "skip": "speed over achieved sparsity at many thresholds, on made-up and real inputs (needs a GPU)",
    "dump": "q, k and v that a model's attention is given, into a file for bench skip",
    "statlog": "what StatLog costs a prefill and a decode step (needs a GPU)",
    "models": "perplexity, needles and achieved shares of a language model, by ways to find thresholds",
    "texts": "token files for bench models",
    "serve": "time to first and further tokens of vLLM's server with our attention beside its own",
    "ragged": "ragged batches beside uniform ones and FlashAttention-3 (needs a GPU)",
    "host": "host microseconds of a launch (needs a GPU)",
    "build": "seconds and memory that compiling takes",
    "accept": "compare result files with what must be reached",
}


def main(arguments: Sequence[str]) -> int:
    """Run the command that ``arguments`` start with; returns the exit status (2: wrong usage)."""
    command = arguments[0] if arguments else ""
    if command not in COMMANDS:
        listing = "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items())
        print(f"usage: python -m bench COMMAND [--help | options]\n{listing}", file=sys.stderr)
        return 0 if command in ("-h", "--help") else 2
    status: int = import_module(f"bench.{command}").main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
