"""Cases by name, for what must not go wrong: planted patterns, shapes, and values that only a device meets."""

from __future__ import annotations

import math
from dataclasses import replace

from skimattn.codegen.tiles import order_of

from .cases import Case
from .patterns import planted

_PLAIN = Case(name="", head_dim=128, head_dim_v=128)


def pattern_cases(arch: str = "sm90") -> tuple[Case, ...]:
    """Every pattern that must drop tiles, in both visiting orders, under a mask and without, batched and ragged."""
    found = []
    for mask in ("full", "causal", "window"):
        base = replace(
            _PLAIN, arch=arch, mask=mask, lens=((150, 500),), window=(600, 600) if mask == "window" else (-1, -1)
        )
        for pattern in planted(order_of(base.spec)):
            case = replace(base, name=f"plant-{pattern}-{mask}", pattern=pattern)
            uneven = ((150, 400), (30, 520), (case.group_rows + 1, 300))
            ragged = replace(case, lens=uneven, q_layout="ragged", kv_layout="ragged", threshold_kind="head")
            found += [case, replace(ragged, name=f"{case.name}-ragged", thresholds=(1e-3, 1e-2))]
    return tuple(found)


def shape_cases(arch: str = "sm90") -> tuple[Case, ...]:
    """Shapes that rings, schedulers and prefix sums trip over: long rows of tiles, many requests, many heads."""
    found = _shapes()
    bytewise = [replace(case, name=f"{case.name}-e4m3", dtype="e4m3", descales="head") for case in found[::3]]
    found = (*found, *bytewise, *_shapes_of_96(), *(_tall_shapes() if arch == "sm100" else ()))
    return tuple(replace(case, arch=arch) for case in found)


def _tall_shapes() -> tuple[Case, ...]:
    """Rows that fill CTAs of 256: whole ones, ones whose second group is empty or ragged, in every order of loads."""
    tall = replace(_PLAIN, mask="full", pattern="random", heads_q=3, heads_kv=1)
    return (
        replace(tall, name="tall-whole", lens=((512, 640),)),
        replace(
            tall, name="tall-ragged", lens=((385, 300), (128, 400), (256, 129)), q_layout="ragged", kv_layout="ragged"
        ),
        replace(tall, name="tall-causal-mla", mask="causal", head_dim=192, lens=((300, 900),)),
        replace(tall, name="tall-d256", head_dim=256, head_dim_v=256, lens=((300, 500),), heads_q=2),
        replace(tall, name="tall-window-e4m3", mask="window", window=(300, 40), dtype="e4m3", lens=((400, 700),)),
    )


def _shapes_of_96() -> tuple[Case, ...]:
    """Calls of 65 to 96 columns: a panel and a part of one, with a neighbour's numbers or NaN behind each row."""
    base = replace(_PLAIN, head_dim=96, head_dim_v=96, lens=((150, 400),), pattern="random", heads_q=4, heads_kv=2)
    d72, d80, d88 = (replace(base, head_dim=columns, head_dim_v=columns) for columns in (72, 80, 88))
    ragged = {"q_layout": "ragged", "kv_layout": "ragged", "lens": ((150, 400), (64, 0), (5, 200), (128, 300))}
    return (
        replace(base, name="d96-whole", mask="full", lens=((256, 384), (256, 384))),
        replace(base, name="d96-deep-skip", mask="full", skip="skip", lens=((140, 1500),), pattern="random_rows"),
        replace(base, name="d96-paged-skip", skip="skip", kv_layout="nhd", page_size=16, lens=((150, 500), (150, 37))),
        replace(base, name="d96-paged-dense", skip="dense", kv_layout="hnd", lens=((150, 500), (150, 37))),
        replace(base, name="d96-custom-fp16", mask="custom", custom="packed4", dtype="fp16"),
        replace(base, name="d96-of-64", head_dim=64, skip="dense"),
        replace(
            base, name="d96-v40-chunked", head_dim_v=40, mask="chunked", chunk=200, memory="gaps", pattern="alternating"
        ),
        replace(d72, name="d72-gaps", mask="full", memory="gaps", lens=((192, 400), (192, 400))),
        replace(d72, name="d72-window", mask="window", window=(150, 20), **ragged),
        replace(d80, name="d80-dense", mask="full", skip="dense", lens=((256, 256),) * 2, heads_kv=4),
        replace(d80, name="d80-packed", memory="packed_qkv", lens=((400, 400),) * 2, pattern="alternating"),
        replace(d88, name="d88-gaps-ragged", memory="gaps", threshold_kind="head", thresholds=(1e-3, 1e-2), **ragged),
        replace(
            d88,
            name="d88-softcap-alibi",
            seed=1,
            softcap=20.0,
            alibi=True,
            sinks=True,
            seqused=True,
            heads_q=3,
            heads_kv=1,
        ),
    )


def _shapes() -> tuple[Case, ...]:
    deep = replace(_PLAIN, lens=((140, 1500),), pattern="random_rows")
    many = tuple((7 * i % 90, 11 * i % 140) for i in range(130))
    few = tuple((index % 3 * 65, 40) for index in range(40))
    crowd = replace(_PLAIN, q_layout="ragged", kv_layout="ragged", head_dim=64, head_dim_v=64, heads_q=1, heads_kv=1)
    return (
        replace(deep, name="deep-causal"),
        replace(deep, name="deep-full-alternating", mask="full", pattern="alternating"),
        replace(deep, name="deep-skip", skip="skip", mask="full"),
        replace(deep, name="deep-dense", skip="dense"),
        replace(deep, name="deep-window-d256", mask="window", window=(500, 0), head_dim=256, head_dim_v=256, seed=1),
        replace(deep, name="deep-d64-fp16", head_dim=64, head_dim_v=64, dtype="fp16", mask="full", heads_q=3),
        replace(deep, name="deep-mla-paged", head_dim=192, kv_layout="nhd", page_size=16, lens=((200, 900),)),
        replace(_PLAIN, name="window-huge", mask="window", window=(2**31 - 1, 2**31 - 1), lens=((150, 40),)),
        replace(crowd, name="many-requests", lens=many),
        replace(crowd, name="many-requests-tall", lens=few, mask="full", heads_q=2),
        replace(_PLAIN, name="many-heads", lens=((70, 260), (70, 260)), heads_q=24, heads_kv=3),
        replace(_PLAIN, name="whole-pages", lens=((90, 384), (90, 256)), kv_layout="hnd", page_size=128),
        *_custom_shapes(),
        *_last_keys_shapes(),
        *_chunk_shapes(),
        *_page_shapes(),
        *_uneven_shapes(),
    )


def _custom_shapes() -> tuple[Case, ...]:
    """Custom masks that all heads or all requests share, in four dimensions."""
    base = replace(_PLAIN, mask="custom", lens=((70, 300), (70, 130)), seqused=True, heads_q=4, heads_kv=2)
    return tuple(
        replace(base, name=f"custom-{form}", custom=form, skip=skip)
        for form, skip in (("bool4b", "stat"), ("packed4b", "dense"), ("bool4h", "skip"), ("packed4s", "stat"))
    )


def _last_keys_shapes() -> tuple[Case, ...]:
    """Custom masks over the last keys: column 0 at any bit of a word, tiles before it, requests with fewer keys."""
    base = replace(_PLAIN, mask="custom", heads_q=4, heads_kv=2, pattern="random", custom="bool3", custom_keys=90)
    ragged = {"q_layout": "ragged", "kv_layout": "ragged", "lens": ((130, 523), (65, 64), (3, 200))}
    wide = {"head_dim": 256, "head_dim_v": 256}
    return (
        replace(base, name="custom-last", lens=((70, 700), (70, 331), (70, 20)), seqused=True),
        replace(base, name="custom-last-ragged", custom="packed3", custom_keys=77, threshold_kind="head", **ragged),
        replace(base, name="custom-last-dense", custom="bool2", custom_keys=33, skip="dense", **ragged),
        replace(
            base, name="custom-last-of-pages", custom="packed4", kv_layout="nhd", page_size=48, lens=((40, 600),) * 2
        ),
        replace(base, name="custom-last-tile", custom="packed2", custom_keys=128, lens=((70, 640),), skip="skip"),
        replace(base, name="custom-last-key", custom_keys=1, lens=((140, 385), (140, 385)), **wide),
        replace(base, name="custom-last-all", custom="bool4", custom_keys=300, lens=((70, 300),), dtype="fp16"),
        replace(base, name="custom-last-and-more", custom="packed4s", custom_keys=400, lens=((70, 300),) * 2),
    )


def _chunk_shapes() -> tuple[Case, ...]:
    """Windows inside chunks: chunks seen whole, sides that end before the chunk does and after, and huge ones."""
    base = replace(_PLAIN, mask="chunked", chunk=100, lens=((150, 400),), pattern="random")
    ragged = {"q_layout": "ragged", "kv_layout": "ragged", "lens": ((150, 400), (30, 20), (65, 300))}
    most = 2**31 - 1
    return (
        replace(base, name="chunks-whole", window=(-1, 99)),
        replace(base, name="chunks-whole-tiles", chunk=128, window=(-1, 127), skip="dense"),
        replace(base, name="chunks-forward", window=(0, -1), head_dim=192),
        replace(base, name="chunks-window", window=(40, 30), chunk=192, **ragged),
        replace(base, name="chunks-causal-window", window=(50, 0), kv_layout="nhd", lens=((150, 400), (150, 90))),
        replace(base, name="chunks-window-d256", window=(90, 150), head_dim=256, head_dim_v=256, skip="skip"),
        replace(base, name="chunks-of-1", chunk=1, window=(3, 3), head_dim=64, head_dim_v=64),
        replace(base, name="chunks-huge", chunk=most, window=(most, most)),
    )


def _page_shapes() -> tuple[Case, ...]:
    """Pages of every size that is unlike the others: copies of one row up, and pages that are wider than a tile."""
    base = replace(_PLAIN, lens=((70, 300), (70, 37), (70, 0)), pattern="random")
    nhd, hnd = replace(base, kv_layout="nhd"), replace(base, kv_layout="hnd", memory="gaps")
    deep = {"lens": ((66, 1100), (66, 515)), "heads_q": 1}
    return (
        replace(nhd, name="pages-of-1", page_size=1),
        replace(
            hnd,
            name="pages-of-1-window-d256",
            page_size=1,
            head_dim=256,
            head_dim_v=256,
            mask="window",
            window=(150, 20),
        ),
        replace(hnd, name="pages-of-2", page_size=2, mask="chunked", chunk=100),
        replace(nhd, name="pages-of-4-mla", page_size=4, head_dim=192, skip="skip"),
        replace(hnd, name="pages-of-8-dense", page_size=8, skip="dense", dtype="fp16"),
        replace(nhd, name="pages-of-48", page_size=48, head_dim=64, head_dim_v=64),
        replace(hnd, name="pages-of-512", page_size=512, **deep),
        replace(nhd, name="pages-of-1024", page_size=1024, **deep),
    )


def _uneven_shapes() -> tuple[Case, ...]:
    """Rows in use, and q and keys in layouts of their own."""
    short, whole = ((16, 16), (5, 9), (0, 3), (16, 1), (3, 16)) * 3, {"seqused": False, "seqused_q": False}
    wide = {"head_dim": 256, "head_dim_v": 256}
    rows = replace(_PLAIN, lens=((70, 300), (1, 300), (0, 300), (200, 37)), seqused_q=True, seqused=True)
    return (
        replace(rows, name="uneven-rows"),
        replace(rows, name="uneven-rows-custom", mask="custom", custom="packed3", threshold_kind="head"),
        replace(rows, name="uneven-rows-of-pages", mask="window", window=(150, 20), kv_layout="nhd", seqused=False),
        replace(rows, name="uneven-rows-in-ragged", q_layout="ragged", kv_layout="ragged", memory="gaps"),
        replace(rows, name="uneven-q-batched-k", q_layout="ragged", seqused_q=False),
        replace(rows, name="uneven-short", mask="full", lens=short, q_layout="ragged", kv_layout="ragged", **whole),
        replace(rows, name="uneven-short-d256", lens=short, q_layout="ragged", kv_layout="ragged", **whole, **wide),
        replace(_PLAIN, name="uneven-k-batched-q", kv_layout="ragged", lens=((130, 40), (130, 300), (130, 0))),
    )


def device_cases(arch: str = "sm90") -> tuple[Case, ...]:
    """Values that only a device can meet: thresholds beyond [0, 1], rows that no request owns."""
    odd = (5.0, math.nan, 1e-3, -1.0, math.inf, 1.0, 1e-30, -math.inf)
    base = replace(_PLAIN, arch=arch, lens=((90, 500),) * 4, threshold_kind="head", thresholds=odd, mask="full")
    padded = replace(
        _PLAIN, arch=arch, lens=((70, 200), (0, 0), (65, 300)), q_layout="ragged", kv_layout="ragged", extra_rows=90
    )
    return (
        replace(base, name="odd-thresholds-random", pattern="random"),
        replace(base, name="odd-thresholds-planted", pattern="all_but_first"),
        replace(padded, name="rows-of-nobody"),
        replace(padded, name="rows-of-nobody-full", mask="full", pattern="tail"),
    )
