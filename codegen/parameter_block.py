"""The by-value parameter block of every kernel: one field list, rendered for the device and laid out for the host."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TENSOR_MAP_BYTES = 128  # sizeof(CUtensorMap); the driver wants it 64-byte aligned
ALIGNMENT = 64

_SIZES = {"tensor_map": TENSOR_MAP_BYTES, "pointer": 8, "int64": 8, "int32": 4, "float32": 4}
_FORMATS: dict[str, Any] = {
    "tensor_map": ctypes.c_uint8 * TENSOR_MAP_BYTES,
    "pointer": ctypes.c_uint64,
    "int64": ctypes.c_int64,
    "int32": ctypes.c_int32,
    "float32": ctypes.c_float,
}


@dataclass(frozen=True)
class Field:
    """One member: ``kind`` is a key of the size table, ``ctype`` its C++ type, ``doc`` units and meaning."""

    name: str
    kind: str
    ctype: str
    doc: str

    @property
    def size(self) -> int:
        """Bytes the member occupies."""
        return _SIZES[self.kind]


def _map(name: str, doc: str) -> Field:
    return Field(name, "tensor_map", "TensorMap", doc)


def _pointer(name: str, target: str, doc: str) -> Field:
    return Field(name, "pointer", f"{target}*", doc)


def _int64(name: str, doc: str) -> Field:
    return Field(name, "int64", "int64_t", doc)


def _int32(name: str, doc: str) -> Field:
    return Field(name, "int32", "int32_t", doc)


def _float(name: str, doc: str) -> Field:
    return Field(name, "float32", "float", doc)


# Ordered by falling alignment, so that the layout has no padding on any compiler.
FIELDS: tuple[Field, ...] = (
    _map("tma_q", "(column, row, head, batch); box one panel (128 bytes) x a group's rows"),
    _map("tma_k", "(column, row, kv head, batch or page); box one panel x page_box_rows or kv_box_rows rows"),
    _map("tma_v", "as tma_k, over head_dim_v columns"),
    _map("tma_o", "as tma_q, over head_dim_v columns"),
    _map("tma_vt", "e4m3 prefill of sm90: (key, column, kv head, place) of V transposed; box one tile x all columns"),
    _pointer("out", "void", "output, used for the rows that the store of a whole group would not fit"),
    _pointer("lse", "float", "log-sum-exp, natural log; null = not wanted"),
    _pointer("page_table", "const int32_t", "[batch, page_table_stride] page numbers"),
    _pointer("cu_seqlens_q", "const int32_t", "[batch + 1] row offsets; null = every request has len_q rows"),
    _pointer("cu_seqlens_k", "const int32_t", "[batch + 1] key offsets; null = every request has len_k keys"),
    _pointer("seqused_q", "const int32_t", "[batch] rows in use; null = all"),
    _pointer("seqused_k", "const int32_t", "[batch] keys in use; null = all"),
    _pointer("custom_mask", "const uint8_t", "bits, little-endian in bytes, one row per query"),
    _pointer("alibi_slopes", "const float", "one slope per query head, of all requests or of each"),
    _pointer("sinks", "const float", "one extra logit per query head, natural log; null = none"),
    _pointer("q_descale", "const float", "what q is multiplied by to get its true values, per kv head; null = 1"),
    _pointer("k_descale", "const float", "likewise for k"),
    _pointer("v_descale", "const float", "likewise for v"),
    _pointer("threshold", "const float", "device thresholds; null = threshold_value"),
    _pointer("stats", "unsigned long long", "pairs (visited, skipped), added to; stat kernels only"),
    _pointer("skip_map", "uint8_t", "per tile 1 = kept, 2 = skipped; null = not wanted; stat kernels only"),
    _pointer("partial", "float", "decode: states of parts, row by row: columns, maximum (log2), sum, padding"),
    _pointer("work_counter", "uint32_t", "ticket of the tile scheduler; zero before and after every launch"),
    _int64("out_stride_row", "elements"),
    _int64("out_stride_head", "elements"),
    _int64("lse_stride_row", "elements"),
    _int64("lse_stride_head", "elements"),
    _int64("custom_stride_batch", "bytes; ragged batches index rows over the whole batch instead"),
    _int64("custom_stride_head", "bytes; 0 = one mask for all heads"),
    _int64("custom_stride_row", "bytes, a multiple of 4"),
    _int64("skip_map_stride_batch", "bytes"),
    _int64("skip_map_stride_head", "bytes"),
    _int64("skip_map_stride_group", "bytes"),
    # From here to q_box_rows: what follows from sizes, which the host writes at once where all else stands ready.
    _int64("out_stride_batch", "elements"),
    _int64("lse_stride_batch", "elements"),
    _int32("batch", "requests"),
    _int32("len_q", "rows per request; the most, where cu_seqlens_q or seqused_q says how many: longer ones are cut"),
    _int32("len_k", "likewise keys"),
    _int32("window_left", "keys to the left of the diagonal, -1 = unlimited (not in chunks)"),
    _int32("page_table_stride", "entries per request"),
    _int32("heads_in_l2", "work order: (request, kv head) pairs, or kv heads of a ragged batch, that share L2"),
    _int32("requests_in_l2", "work order of a ragged batch: requests, at most 32, that share L2 with them"),
    _int32("first_request", "launches in rounds: requests before it are computed by another launch"),
    _int32("round_requests", "launches in rounds: requests from there on"),
    _int32("part_shift", "decode: log2 of the leaves that one CTA computes and merges: one, a twig's or a branch's"),
    _int32("warp_rows", "combine: 1 = a warp merges a row, 0 = a CTA, a warp to a branch"),
    _int32("parts", "decode: room for parts of each (request, kv head, group)"),
    _int32("groups", "decode: row groups of each (request, kv head), at most"),
    _int32("part_rows", "decode: rows that a part has room for"),
    _int32("q_box_heads", "decode: query heads of one copy of Q, whose rows follow each other head by head"),
    _int32("q_box_rows", "decode: query rows of one copy of Q"),
    # And what does not.
    _int32("heads_q", "query heads"),
    _int32("heads_kv", "key/value heads; heads_q is a multiple"),
    _int32("head_dim_v", "columns of the output, at most the kernel's"),
    _int32("page_size", "keys per page; paged kernels only"),
    _int32("page_box_rows", "rows of one copy: the largest power of two that divides page_size, at most the tile"),
    _int32("kv_box_rows", "rows of one copy where there are no pages: the tile, or less that holds len_k keys"),
    _int32("window_right", "keys to the right of the diagonal, -1 = unlimited (not in chunks)"),
    _int32("chunk_size", "keys per attention chunk"),
    _int32("alibi_stride_batch", "elements; 0 = the same slopes for all requests"),
    _int32("threshold_stride_batch", "elements"),
    _int32("threshold_stride_head", "elements"),
    _int32("q_descale_stride_batch", "elements; 0 = one value for all, as for the five below"),
    _int32("q_descale_stride_head", "elements"),
    _int32("k_descale_stride_batch", "elements"),
    _int32("k_descale_stride_head", "elements"),
    _int32("v_descale_stride_batch", "elements"),
    _int32("v_descale_stride_head", "elements"),
    _int32("stats_stride_batch", "pairs"),
    _int32("stats_stride_head", "pairs"),
    _int32("decode_more_keys", "how many more keys than rows a request has that is decode's"),
    _int32("decode_always_rows", "packed rows up to which a request is decode's; 0 = none is"),
    _int32("decode_most_rows", "packed rows up to which it is if it has many keys"),
    _int32("decode_keys_per_row", "how many for each of them"),
    _int32("mask", "combine, transpose: code of the mask feature"),
    _int32("qheads_per_kv", "decode: heads_q / heads_kv"),
    _float("threshold_value", "threshold where the pointer is null"),
    # Without softcap, q_descale * k_descale multiplies scale_log2 and divides bias_scale on the device; with it, it
    # multiplies score_scale.
    _float("scale_log2", "log2(e) x what one unit of a raw score is worth: softmax_scale, or softcap"),
    _float("score_scale", "softmax_scale / softcap; softcap kernels only"),
    _float("bias_scale", "one natural-log unit in raw scores: 1 / softmax_scale, or 1 / softcap; alibi only"),
    _int32(
        "custom_keys", "the last keys of a request, which the columns of custom_mask are; 0 = they are all its keys"
    ),
)


def _offsets() -> tuple[dict[str, int], int]:
    offsets, at = {}, 0
    for field in FIELDS:
        assert at % min(field.size, ALIGNMENT) == 0, field.name
        offsets[field.name] = at
        at += field.size
    return offsets, -(-at // ALIGNMENT) * ALIGNMENT


OFFSETS: Mapping[str, int]
SIZE: int
OFFSETS, SIZE = _offsets()


def layout_sha256(fields: Iterable[Field]) -> str:
    """Hash of how the device reads a block of these fields: names, kinds and C++ types in their order, and no texts."""
    return hashlib.sha256(repr([(field.name, field.kind, field.ctype) for field in fields]).encode()).hexdigest()


class ParamsBlock(ctypes.Structure):
    """The host's view of the block. Its buffer must start at a multiple of ``ALIGNMENT`` bytes."""

    _fields_ = [(field.name, _FORMATS[field.kind]) for field in FIELDS] + [
        ("_tail", ctypes.c_uint8 * (SIZE - OFFSETS[FIELDS[-1].name] - FIELDS[-1].size))
    ]


def aligned_block() -> tuple[ParamsBlock, Any]:
    """A zeroed block at a 64-byte boundary, and the buffer that owns its memory (keep both alive)."""
    owner = (ctypes.c_uint8 * (SIZE + ALIGNMENT))()
    start = -ctypes.addressof(owner) % ALIGNMENT
    return ParamsBlock.from_buffer(owner, start), owner
