"""What result files and their readers agree on: names of what is timed, and the thresholds it is timed with."""

from __future__ import annotations

DENSE = "ours dense"
RAGGED, UNIFORM = "ours ragged", "ours uniform"  # in ``bench ragged``
REPEATED = "launch(params), out given"  # in ``bench host``: the row that must stay within the bound
REPEATED_DECODE = "decode, launch(params), new out"  # likewise
SKIP_NOTHING = (0.0, 1e-30)  # thresholds on N(0,1): never skip, and vote on every tile without ever agreeing
THRESHOLD = 1e-3  # on planted inputs
READ = "plain read"  # in ``bench decode``: a reduction over 4 GB
BEST = "best peer"  # the fastest of the peers' dense kernels
TWICE, IN_BF16 = "ours twice the rows", "ours dense bf16"  # in ``bench rows``, beside a call in e4m3
PAGES_OF_64 = "ours pages of 64"


def skip_name(threshold: float) -> str:
    """Our skip kernel at a threshold."""
    return f"ours skip@{threshold:g}"


def stat_name(threshold: float) -> str:
    """Our stat kernel at a threshold."""
    return f"ours stat@{threshold:g}"


def is_ours(name: str) -> bool:
    """Whether a name is that of a kernel of this project."""
    return name.startswith("ours ")
