"""``python -m skimattn demo``: one call end to end, with everything that can be seen of it."""

from __future__ import annotations

import locale
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .._call.latent import values_of
from .._select.catalog import Explanation, explain
from .._select.dispatch import BY_CAPABILITY
from ..errors import expected
from ..launcher import launch
from ..params import Params
from ..sparse.stats import sparsity
from .tile_map import ASCII, BLOCKS, text_lines, write_png

HEADS_Q, HEADS_KV, HEAD_DIM = 4, 2, 128
TOPICS = 5
TOPIC_KEYS = 256  # the topic of the planted input changes every so many tokens
GAP = 16.0  # how far, in logits, a key of the row's own topic or of the sink stands above the others
SINK_KEYS = 4
_EXACT_ROWS = 256  # rows of the exact answer that are computed at once


def pick_device(wanted: str | None) -> tuple[str, str]:
    """The device to run on, and why; ``wanted`` is ``"cpu"``, ``"cuda"`` or None = a GPU with kernels, else the CPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise expected("--device", "cpu, since torch can use no GPU", wanted)
    if wanted is not None:
        return wanted, f"--device {wanted}"
    if not torch.cuda.is_available():
        return "cpu", "no GPU that torch can use"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if capability not in BY_CAPABILITY:
        return "cpu", f"{name}: no kernels for compute capability {capability[0]}.{capability[1]}"
    return "cuda", name


def planted_input(seqlen: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v ``[1, seqlen, heads, 128]`` in bf16 with the structure that long texts have; the same on every device.

    The text changes its topic every :data:`TOPIC_KEYS` tokens, in an order of its own for each KV head. A query scores
    :data:`GAP` above the noise on keys of its topic and on the first few keys (the sink), so most other tiles can go.
    """
    random = torch.Generator().manual_seed(0)
    q = torch.randn(seqlen, HEADS_Q, HEAD_DIM, generator=random)
    k = torch.randn(seqlen, HEADS_KV, HEAD_DIM, generator=random)
    v = torch.randn(seqlen, HEADS_KV, HEAD_DIM, generator=random)
    axes = torch.linalg.qr(torch.randn(HEAD_DIM, HEAD_DIM, generator=random)).Q[: TOPICS + 1]
    segments = -(-seqlen // TOPIC_KEYS)
    topics = torch.randint(TOPICS, (segments, HEADS_KV), generator=random)
    own = axes[topics.repeat_interleave(TOPIC_KEYS, 0)[:seqlen]]  # [seqlen, HEADS_KV, HEAD_DIM]
    sink = axes[TOPICS]
    strength = (GAP * HEAD_DIM**0.5) ** 0.5  # of q and of k along a topic: their product, scaled, is the gap
    k += strength * own
    k[:SINK_KEYS] = strength * sink
    q += strength * (own.repeat_interleave(HEADS_Q // HEADS_KV, 1) + sink)
    batch = (tensor.to(torch.bfloat16).unsqueeze(0).to(device) for tensor in (q, k, v))
    return next(batch), next(batch), next(batch)


def exact_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention ``[1, seqlen, Hq, Dv]`` in float32 without tiles or 16-bit probabilities: what is true."""
    q, k, v = (tensor[0].float().transpose(0, 1) for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(HEADS_Q // HEADS_KV, 0) for tensor in (k, v))
    seqlen = q.shape[1]
    parts = []
    for rows in torch.split(torch.arange(seqlen, device=q.device), _EXACT_ROWS):
        scores = q[:, rows] @ k.transpose(1, 2) * HEAD_DIM**-0.5
        hidden = torch.arange(seqlen, device=q.device) > rows.unsqueeze(1)
        parts.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v)
    return torch.cat(parts, 1).transpose(0, 1).unsqueeze(0)


@dataclass(frozen=True)
class Demo:
    """The demo's calls: with the threshold, counts and a map; and dense."""

    skim: Params
    dense: Params
    chosen: Explanation
    chosen_dense: Explanation


def prepare(seqlen: int, threshold: float, device: str) -> Demo:
    """Input and calls; nothing runs yet."""
    q, k, v = planted_input(seqlen, device)
    stats = torch.zeros(1, HEADS_Q, 2, dtype=torch.int64, device=device)
    dense = Params(q, k, v, mask="causal")
    skim = replace(dense, skip_softmax_threshold=threshold, stats=stats)
    chosen = explain(skim)
    if chosen.accepted:
        assert chosen.tile is not None and chosen.group_rows is not None
        groups, tiles = -(-seqlen // chosen.group_rows), -(-seqlen // chosen.tile[1])
        skip_map = torch.zeros(1, HEADS_Q, groups, tiles, dtype=torch.uint8, device=device)
        skim = replace(skim, skip_map=skip_map)
    return Demo(skim, dense, chosen, explain(dense))


def errors(got: torch.Tensor, wanted: torch.Tensor) -> str:
    """Largest difference, and the root mean square of all of them relative to that of what was wanted."""
    difference = got.float() - wanted.float()
    relative = float(difference.norm() / wanted.float().norm())
    return f"largest {float(difference.abs().max()):.2g}, root mean square {100 * relative:.3f} %"


def report(demo: Demo, head: int = 0, shades: str = BLOCKS) -> Iterator[str]:
    """Run the demo, and tell in lines what happened, as it happens."""
    params, chosen = demo.skim, demo.chosen
    yield "\nWhich kernel runs, and why"
    for step in chosen.trace:
        yield f"  {step}"
    start = time.perf_counter()
    out = launch(params)
    dense = launch(demo.dense)
    assert isinstance(out, torch.Tensor) and isinstance(dense, torch.Tensor)
    assert params.stats is not None and params.skip_map is not None
    counts = params.stats.cpu()  # waits for the kernel
    seconds = time.perf_counter() - start
    visited, skipped = counts.sum((0, 1)).tolist()
    by_head = ", ".join(f"{100 * share:.0f} %" for share in sparsity(counts)[0].tolist())
    yield "\nWhat came out"
    yield f"  tiles skipped: {skipped} of {visited} visited, {100 * skipped / visited:.1f} % (by head: {by_head})"
    yield f"  against the dense kernel: {errors(out, dense)}"
    yield f"  dense against exact float32: {errors(dense, exact_attention(params.q, params.k, values_of(params)))}"
    yield f"  both calls took {seconds:.2f} s, with loading and whatever had to be compiled"
    yield f"\nTiles of head {head} ({shades[4]} kept, {shades[1]} skipped, blank: hidden by the causal mask)"
    assert chosen.tile is not None
    yield f"  one row down: {chosen.group_rows} queries; one tile right: {chosen.tile[1]} keys"
    for line in text_lines(params.skip_map[0, head], shades):
        yield f"  {line}"


def shades_for(encoding: str | None) -> str:
    """Block characters where the terminal can show them, ASCII where not."""
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def run(seqlen: int, threshold: float, wanted: str | None, png: Path | None) -> Iterator[str]:
    """The whole demo, line by line; the errors of :func:`skimattn.launch`, and ``OSError`` for the picture."""
    device, why = pick_device(wanted)
    yield (
        f"skimattn: {seqlen} queries and keys, {HEADS_Q} query heads on {HEADS_KV}, head_dim {HEAD_DIM}, bf16, causal, "
        f"threshold {threshold:g}"
    )
    yield f"on {device}: {why}"
    demo = prepare(seqlen, threshold, device)
    yield from report(demo, shades=shades_for(sys.stdout.encoding or locale.getpreferredencoding()))
    if png is not None:
        assert demo.skim.skip_map is not None and demo.chosen.tile is not None and demo.chosen.group_rows is not None
        write_png(png, demo.skim.skip_map[0, 0], (demo.chosen.group_rows, demo.chosen.tile[1]))
        yield f"\nthe same as a picture: {png}"
