"""The cases of MLA decode in latent form: layouts, masks, groups, borders of leaves, and what skips."""

from __future__ import annotations

from dataclasses import replace

from .cases import Case

_BASE = Case(
    "", phase="mla", head_dim=576, head_dim_v=512, heads_q=16, heads_kv=1, pattern="random", scale=0.1, lens=((2, 700),)
)
_RAGGED = ((0, 50), (3, 600), (1, 200), (4, 0), (7, 1), (2, 513))
MLA_CASES: tuple[Case, ...] = (
    replace(_BASE, name="mla-stat"),
    replace(_BASE, name="mla-dense", skip="dense", pattern="none", gives_v=False),
    replace(_BASE, name="mla-full", mask="full", skip="skip", pattern="alternating", sinks=True),
    replace(_BASE, name="mla-pages", kv_layout="nhd", page_size=16, heads_q=72, lens=((1, 300), (1, 1290), (1, 0))),
    replace(_BASE, name="mla-small-pages", kv_layout="hnd", page_size=1, lens=((2, 130), (2, 37)), skip="skip"),
    replace(_BASE, name="mla-odd-pages", kv_layout="hnd", page_size=48, dtype="fp16", skip="dense", pattern="none"),
    replace(_BASE, name="mla-ragged", q_layout="ragged", kv_layout="ragged", heads_q=20, lens=_RAGGED, softcap=15.0),
    replace(_BASE, name="mla-fp16", dtype="fp16", mask="full", pattern="single_row"),
    replace(
        _BASE,
        name="mla-thresholds",
        seqused=True,
        heads_q=40,
        lens=((5, 100), (5, 1200)),
        skip="skip",
        threshold_kind="head",
        thresholds=(1e-3, 1e-2),
    ),
    replace(_BASE, name="mla-heads", heads_q=128, lens=((1, 1100),), pattern="alternating", gives_v=False),
    replace(_BASE, name="mla-twigs", heads_q=4, lens=((1, 4500),), kv_layout="nhd", pattern="alternating"),
    replace(_BASE, name="mla-gaps", memory="gaps", stats_kind="all", threshold_kind="batch", pattern="staircase"),
    *(replace(_BASE, name=f"mla-{keys}", heads_q=4, lens=((1, keys),)) for keys in (1, 63, 65, 1023, 1024, 1025)),
)
