"""Tensors of a case, laid out as a caller would hold them, in memory that is hostile wherever nobody owns it.

Keys past a request's length, unused pages and gaps between strides hold ``Case.fill`` (NaN or Inf), page
numbers past a request's length are out of range, and outputs start as a sentinel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from .cases import DTYPES, PHASES, Case, Content, sinks_of, slopes_of
from .layout import SPARE, longest_keys, longest_rows, rows_before, rows_of, sequence, spare

MAP_SENTINEL = 99
UNCOUNTED = 7  # between pairs of counts
BAD_PAGE = 0x7FFFFFF0
Tensors = dict[str, torch.Tensor]


def sentinel(dtype: torch.dtype) -> float:
    """What outputs hold before a call: the lowest finite value, which no output comes near."""
    return torch.finfo(dtype).min


@dataclass
class Built:
    """A call's tensors by argument name, and its plain arguments. ``tensors`` are views of the storages they share."""

    case: Case
    tensors: Tensors
    values: dict[str, object]

    def rows(self, name: str, index: int) -> torch.Tensor:
        """The rows of request ``index`` in ``q``, ``out`` or ``lse``."""
        return rows_of(self.case, self.tensors[name], index)

    def to(self, device: torch.device | str) -> Built:
        """The same call with every storage copied to ``device``; views keep their strides and offsets."""
        moved: dict[int, torch.Tensor] = {}
        return replace(self, tensors={name: _move(tensor, device, moved) for name, tensor in self.tensors.items()})


def _move(tensor: torch.Tensor, device: torch.device | str, moved: dict[int, torch.Tensor]) -> torch.Tensor:
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in moved:
        moved[storage.data_ptr()] = whole(tensor).to(device, copy=True)
    base = moved[storage.data_ptr()].view(tensor.dtype)
    return base.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor's storage, the gaps included, as uint8."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _full(shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> torch.Tensor:
    """A filled tensor amid more of the same: 8 further rows (or one further request or page) on either side."""
    spare = 8 if len(shape) == 3 else 1
    return torch.full((shape[0] + 2 * spare, *shape[1:]), fill, dtype=dtype)[spare:-spare]


def _empty(case: Case, shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> torch.Tensor:
    """A tensor of ``shape`` (..., rows, heads, columns), filled, in the case's kind of memory."""
    if case.memory == "gaps":
        step = 16 // dtype.itemsize
        wide = _full((*shape[:-2], shape[-2] + 1, shape[-1] + 2 * step), dtype, fill)
        return wide[..., : shape[-2], step : step + shape[-1]]
    if case.memory == "transposed":
        return _full((*shape[:-3], shape[-2], shape[-3], shape[-1]), dtype, fill).transpose(-2, -3)
    return _full(shape, dtype, fill)


def fill_of(case: Case, dtype: str) -> float:
    """What memory of a type holds that no request owns; e4m3 has no Inf."""
    return math.nan if dtype == "e4m3" else case.fill


def _allocate(case: Case) -> Tensors:
    dtype, fill = DTYPES[case.dtype], fill_of(case, case.dtype)
    q_shape, kv_shape = sequence(case, 0), sequence(case, 1)
    hq, hkv, d, dv = case.heads_q, case.heads_kv, case.head_dim, case.head_dim_v
    if case.memory == "packed_qkv":
        assert q_shape == kv_shape and d == dv and case.kv_dtype == "same", "packed qkv wants equal shapes and types"
        packed = _full((*q_shape, hq + 2 * hkv, d), dtype, fill)
        return {"q": packed[..., :hq, :], "k": packed[..., hq : hq + hkv, :], "v": packed[..., hq + hkv :, :]}
    q = _empty(case, (*q_shape, hq, d), dtype, fill)
    if case.paged:
        return {"q": q}
    dtype, fill = DTYPES[case.keys_dtype], fill_of(case, case.keys_dtype)
    if case.memory == "packed_kv":
        assert d == dv, "packed kv wants equal head dims"
        packed = _full((*kv_shape, 2 * hkv, d), dtype, fill)
        k, v = packed[..., :hkv, :], packed[..., hkv:, :]
    else:
        k, v = (_empty(case, (*kv_shape, hkv, columns), dtype, fill) for columns in (d, dv))
    return {"q": q, "k": k, "v": v}


def _place(case: Case, tensors: Tensors, held: list[Content]) -> None:
    """Write the requests into allocated, unpaged tensors."""
    at_k = 0
    for index, one in enumerate(held):
        rows_of(case, tensors["q"], index).copy_(one.q)
        if case.paged:
            continue
        for name, source in (("k", one.k), ("v", one.v)):
            rows = tensors[name][at_k:] if case.kv_layout == "ragged" else tensors[name][index]
            rows[: len(source)].copy_(source)
        at_k += len(one.k) + spare(case, 1)


def _pages(case: Case, held: list[Content]) -> Tensors:
    """Paged k and v with their page table: pages in random order, some unused, some table entries out of range."""
    size = case.page_size
    needed = [-(-len(one.k) // size) for one in held]
    rng = np.random.default_rng([case.seed, 77])
    order = [int(page) for page in rng.permutation(sum(needed) + 3)]
    width, spare = max(needed) + 2, 3 if case.memory == "gaps" else 0
    table = torch.full((len(held), width + spare), BAD_PAGE, dtype=torch.int32)[:, :width]
    dtype, fill, heads = DTYPES[case.keys_dtype], fill_of(case, case.keys_dtype), case.heads_kv
    caches = {}
    for name, columns in (("k", case.head_dim), ("v", case.head_dim_v)):
        plain = replace(case, memory="gaps" if case.memory == "gaps" else "plain")
        if case.kv_layout == "nhd":
            caches[name] = _empty(plain, (len(order), size, heads, columns), dtype, fill)
        else:
            caches[name] = _empty(plain, (len(order), heads, size, columns), dtype, fill)
    for index, one in enumerate(held):
        for slot in range(needed[index]):
            page = order.pop()
            table[index, slot] = page
            for name, source in (("k", one.k), ("v", one.v)):
                rows = source[slot * size : (slot + 1) * size]
                cache = caches[name][page] if case.kv_layout == "nhd" else caches[name][page].transpose(0, 1)
                cache[: len(rows)].copy_(rows)
    return {**caches, "page_table": table}


def _lengths(case: Case) -> Tensors:
    tensors: Tensors = {}
    for side, layout, name in ((0, case.q_layout, "cu_seqlens_q"), (1, case.kv_layout, "cu_seqlens_k")):
        if layout == "ragged":
            ends = np.cumsum([0] + [pair[side] + spare(case, side) for pair in case.lens])
            tensors[name] = torch.tensor(ends + (rows_before(case) if side == 0 else 0), dtype=torch.int32)
    for side, given, name in ((0, case.seqused_q, "seqused_q"), (1, case.seqused or case.paged, "seqused_k")):
        if given:
            tensors[name] = torch.tensor([pair[side] for pair in case.lens], dtype=torch.int32)
    return tensors


def mask_tensor(case: Case, held: list[Content]) -> torch.Tensor:
    """The custom mask in the case's form; bits at rows and keys that a request does not have are set."""
    keys, ragged = case.custom_keys or longest_keys(case), case.q_layout == "ragged"
    rows = [len(one.q) + spare(case, 0) if ragged else sequence(case, 0)[1] for one in held]
    padded = [
        np.pad(_bits(one), ((0, 0), (0, have - len(one.q)), (0, keys - _bits(one).shape[-1])), constant_values=True)
        for one, have in zip(held, rows, strict=True)
    ]
    if ragged:
        bits = np.concatenate(padded, axis=1)
        bits = np.pad(bits, ((0, 0), (rows_before(case), case.extra_rows), (0, 0)), constant_values=True)
        bits = bits if case.custom.endswith("3") else bits[0]
    else:
        bits = np.stack(padded)
        shared = bits.all(axis=0, keepdims=True)  # requests that have a bit of it agree
        forms = {"2": shared[0, 0], "3": bits[:, 0], "4": bits, "b": bits[:, :1], "h": shared, "s": shared[:, :1]}
        bits = forms[case.custom[-1]]
    if case.custom.startswith("bool"):
        return torch.from_numpy(np.ascontiguousarray(bits))
    width = 32 * -(-keys // 32) + 64  # rows longer than they need be, hostile at the end
    wide = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, width - keys)], constant_values=True)
    return torch.from_numpy(np.packbits(wide, axis=-1, bitorder="little"))


def _bits(one: Content) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    assert one.custom is not None
    return one.custom


def _results(case: Case) -> Tensors:
    """Outputs full of sentinels, statistics that already hold something."""
    tensors: Tensors = {}
    rows = sequence(case, 0)
    if case.give_out:
        dtype = DTYPES[case.dtype_out]
        tensors["out"] = _empty(case, (*rows, case.heads_q, case.head_dim_v), dtype, sentinel(dtype))
        if case.lse:
            tensors["lse"] = _lse(case, rows)
    if case.skip == "stat":
        tensors |= _statistics(case)
    return tensors


def _lse(case: Case, rows: tuple[int, ...]) -> torch.Tensor:
    """[..., rows, heads], row by row, or head by head where memory is transposed."""
    fill = sentinel(torch.float32)
    if case.memory == "transposed":
        return torch.full((*rows[:-1], case.heads_q, rows[-1]), fill).transpose(-1, -2)
    spare = 3 if case.memory == "gaps" else 0
    return torch.full((*rows, case.heads_q + spare), fill)[..., : case.heads_q]


def _statistics(case: Case) -> Tensors:
    batch, spare = len(case.lens), 2 if case.memory == "gaps" else 0
    shape = {"all": (2,), "batch": (batch, 2), "head": (batch, case.heads_q, 2)}[case.stats_kind]
    stats = torch.full((*shape[:-1], 2 + spare), UNCOUNTED)[..., :2]
    groups, tiles = _map_size(case)
    skip_map = torch.full((batch, case.heads_q + spare, groups, tiles + spare), MAP_SENTINEL, dtype=torch.uint8)
    return {"stats": stats.copy_(stats_before(shape)), "skip_map": skip_map[:, : case.heads_q, :, :tiles]}


def _map_size(case: Case) -> tuple[int, int]:
    """Groups and tiles that whichever kernels may run visit, and some more."""
    rows = max(len_q for len_q, _ in case.lens) + case.extra_rows
    keys = max(len_k for _, len_k in case.lens)
    if case.phase == "mla":
        return -(-rows * case.heads_q // case.group_rows) + 1, -(-keys // case.tile_n) + 2
    prefill, decode = (
        replace(case, kv_dtype="same", phase=""),
        replace(case, arch="sm90", dtype="bf16", kv_dtype="same", out_dtype="", phase="decode"),
    )
    packed = min((rows + SPARE) * case.heads_q // case.heads_kv, PHASES.most)
    groups = max(-(-rows // prefill.group_rows) + 1, -(-packed // decode.group_rows))
    return groups, -(-keys // min(prefill.tile_n, decode.tile_n)) + 2


def stats_before(shape: tuple[int, ...]) -> torch.Tensor:
    """What a case's statistics hold before the call; one count lies above 2^32."""
    count = int(np.prod(shape))
    return (torch.arange(count, dtype=torch.int64) * 1000 + 2**33 + 7).reshape(shape)


def _threshold(case: Case, held: list[Content]) -> dict[str, object]:
    if case.skip == "dense":
        return {}
    per_head = np.stack([one.threshold for one in held if one.threshold is not None])
    if case.threshold_kind == "float":
        return {"skip_softmax_threshold": float(case.thresholds[0])}
    values = per_head if case.threshold_kind == "head" else per_head[:, 0]
    step = 2 if case.memory == "gaps" else 1
    spread = torch.full((*values.shape[:-1], values.shape[-1] * step), 0.5)[..., ::step]
    return {"skip_softmax_threshold": spread.copy_(torch.from_numpy(np.ascontiguousarray(values)))}


def _descales(case: Case, held: list[Content]) -> Tensors:
    """One element each, or [B, Hkv]."""
    if not case.descales:
        return {}
    by_name = {name: np.stack([one.descales[name] for one in held]) for name in held[0].descales}
    one = case.descales == "one"
    return {name: torch.from_numpy(values[0, :1] if one else values) for name, values in by_name.items()}


def _head_vectors(case: Case) -> Tensors:
    """Sinks [Hq], and alibi slopes [Hq] or [B, Hq]."""
    slopes = [slopes_of(case, stream) for stream in case.streams]
    arrays = {"sinks": sinks_of(case), "alibi_slopes": slopes[0] if slopes else None}
    if case.alibi and case.alibi_kind == "batch":
        arrays["alibi_slopes"] = np.stack([one for one in slopes if one is not None])
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def build(case: Case, held: list[Content]) -> Built:
    """Lay the requests out in memory as the case says."""
    tensors = _allocate(case)
    if case.paged:
        tensors |= _pages(case, held)
    _place(case, tensors, held)
    if case.phase == "mla":  # one memory
        del tensors["v"]
        if case.gives_v:
            tensors["v"] = tensors["k"][..., : case.head_dim_v]
    tensors |= _lengths(case) | _results(case) | _descales(case, held)
    tensors |= _head_vectors(case)
    if case.mask == "custom":
        tensors["custom_mask"] = mask_tensor(case, held)
    values: dict[str, object] = {"mask": case.mask, **_threshold(case, held)}
    threshold = values.get("skip_softmax_threshold")
    if isinstance(threshold, torch.Tensor):
        tensors["skip_softmax_threshold"] = threshold
        del values["skip_softmax_threshold"]
    values |= {name: value for name, value in _plain(case).items() if value is not None}
    return Built(case, tensors, values)


def _plain(case: Case) -> dict[str, object]:
    longest = longest_keys(case)
    return {
        "window_size": case.window if case.mask in ("window", "chunked") else None,
        "chunk_size": case.chunk if case.mask == "chunked" else None,
        "custom_mask_keys": case.custom_keys or None,
        "softmax_scale": case.scale,
        "softcap": case.softcap or None,
        "kv_layout": case.kv_layout.upper() if case.paged else None,
        "max_seqlen_q": longest_rows(case),
        "max_seqlen_k": longest if case.kv_layout != "batched" or case.seqused else None,
        "return_lse": True if case.lse and not case.give_out else None,
    }
