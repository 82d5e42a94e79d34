"""A test case: everything that names one call, and the random content of its requests.

A case is a value; the same case gives the same bits everywhere. ``Case.ids`` names the random stream of
each request, so that a request can be taken out of its batch (``alone``) and stay the same.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from skimattn.codegen.spec import KernelSpec
from skimattn.codegen.tiles import order_of, split, tile_of

from .oracle import Answer, Request, Rules, attend, custom_seen, visible_keys
from .oracle_decode import Leaves, Phases, attend_decoded
from .planting import plant

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "e4m3": torch.float8_e4m3fn}
KERNEL_DIMS = {
    "prefill": ((64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)),
    "decode": ((64, 64), (128, 128), (256, 256)),
    "mla": ((576, 512),),
}
DIMS_OF_SM90_16_BIT = ((80, 80), (96, 96), (192, 192))
PHASES = Phases(split.GROUP_ROWS, split.MAX_GROUPS * split.GROUP_ROWS, split.KEYS_PER_ROW)
# Values of low tiles: what is kept or dropped by mistake shows in the output. With e4m3 it shows in maps only.
LOUD = {"bf16": 2.0**20, "fp16": 2.0**13, "e4m3": 2.0**6}
F64 = NDArray[np.float64]
_LOUD_COLUMNS = (255, 511)  # of MLA, in either half of the values
_SINKS = (1.5, -2.0, 0.25, 4.0)
_DESCALES = {"q_descale": (0.75, 1.5, 1.0), "k_descale": (1.25, 0.8), "v_descale": (2.0, 0.3, 1.1, 7.0)}
FLOAT32_BITS = 20
# Hopper adds 8-bit products up in about 14 bits: each of 33 addends is cut off where the largest one ends, so where one
# is large and many are small, all of these lose. Found on an H200: the LSE is off by up to 2.6 * 2^-11 of the sum of
# magnitudes, in 12 of 292 calls by more than 2^-11.
HOPPER_8_BIT = 9


def kernel_dims(arch: str, phase: str, dtype: str, columns: tuple[int, int]) -> tuple[int, int]:
    """Head dims of the kernel that calls with these run on."""
    dims = [pair for pair in KERNEL_DIMS[phase] if pair[0] >= columns[0] and pair[1] >= columns[1]]
    lacks_some = arch != "sm90" or dtype == "e4m3"
    return min((pair for pair in dims if not (lacks_some and pair in DIMS_OF_SM90_16_BIT)), key=sum)


@dataclass(frozen=True)
class Case:
    """One call. ``lens`` holds (len_q, len_k) per request; batched layouts without seqused want them uniform."""

    name: str
    arch: str = "sm90"
    # Of its requests: "" prefill, "decode", "mla", whose values are columns of its keys, or "mixed", which is prefill
    # or decode for each by its own lengths.
    phase: str = ""
    gives_v: bool = True  # of mla: whether the call names its values
    dtype: str = "bf16"
    kv_dtype: str = "same"  # of k and v: dtype, or "e4m3"
    out_dtype: str = ""  # default: dtype, or bf16 for e4m3
    descales: str = ""  # of what is e4m3: "" (none), "one" element, by "head" ([B, Hkv])
    head_dim: int = 64
    head_dim_v: int = 64
    mask: str = "causal"
    window: tuple[int, int] = (-1, -1)
    chunk: int = 0
    # "bool" or "packed" and its rank, 2, 3 or 4 (ragged q: 2 or 3). Rank 4 can go on: "b" one for all heads, "h" one
    # for all requests, "s" a single one.
    custom: str = ""
    custom_keys: int = 0  # how many keys, the last ones, the custom mask covers; 0 = all
    q_layout: str = "batched"  # batched, ragged
    kv_layout: str = "batched"  # batched, ragged, nhd, hnd
    seqused_q: bool = False  # lengths in seqused_q, and rows that no request uses
    seqused: bool = False  # lengths in seqused_k, and keys that no request uses; pages always have it
    page_size: int = 64
    memory: str = "plain"  # plain, gaps, transposed, packed_kv, packed_qkv
    heads_q: int = 2
    heads_kv: int = 1
    lens: tuple[tuple[int, int], ...] = ((100, 300),)
    ids: tuple[int, ...] = ()  # default 0, 1, ...
    skip: str = "stat"
    threshold_kind: str = "float"  # float, batch, head
    thresholds: tuple[float, ...] = (1e-3,)  # dealt out over requests and heads
    pattern: str = "alternating"
    scale: float | None = None
    softcap: float = 0.0
    alibi: bool = False
    alibi_kind: str = "head"  # head, batch: the same slopes for all requests or not
    sinks: bool = False
    lse: bool = True
    give_out: bool = True
    stats_kind: str = "head"  # all, batch, head
    extra_rows: int = 0  # rows of a ragged q beyond the last request, which belong to nobody
    fill: float = math.nan  # of memory that no request owns
    exact: bool = False  # scores and thresholds are exact in float32: nothing is too close to call
    # What sums of products keep: 2^-sum_bits of the sum of their magnitudes.
    sum_bits: int = FLOAT32_BITS
    seed: int = 0

    @property
    def spec(self) -> KernelSpec:
        """The kernel that the call must use; of mixed ones, that of prefill."""
        phase = self.phase if self.phase in ("decode", "mla") else "prefill"
        head_dim, head_dim_v = kernel_dims(self.arch, phase, self.dtype, (self.head_dim, self.head_dim_v))
        return KernelSpec(
            arch=self.arch,
            phase=phase,
            dtype=self.dtype,
            out_dtype=self.dtype_out,
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            mask=self.mask,
            paged=self.paged,
            skip=self.skip,
            softcap=self.softcap > 0,
            alibi=self.alibi,
            kv_dtype=self.kv_dtype,
        )

    @property
    def keys_dtype(self) -> str:
        """The type of k and v."""
        return self.dtype if self.kv_dtype == "same" else self.kv_dtype

    @property
    def dtype_out(self) -> str:
        """The output's type."""
        return self.out_dtype or ("bf16" if self.dtype == "e4m3" else self.dtype)

    @property
    def paged(self) -> bool:
        """Whether K and V live in pages."""
        return self.kv_layout in ("nhd", "hnd")

    @property
    def device_only(self) -> bool:
        """Whether arguments hold what is refused where it can be read (on the CPU) and defined where it cannot."""
        odd = self.threshold_kind != "float" and not all(0 <= value <= 1 for value in self.thresholds)
        return odd or self.extra_rows > 0

    @property
    def tile_n(self) -> int:
        """Keys per tile of the kernel."""
        return int(tile_of(self.spec).tile_n)

    @property
    def group_rows(self) -> int:
        """Rows of the kernel that decide together."""
        return int(tile_of(self.spec).group_rows)

    def decodes(self, len_q: int, len_k: int) -> bool:
        """Whether a request is decode's."""
        if self.phase != "mixed":
            return self.phase in ("decode", "mla")
        if self.kv_dtype != "same":
            return True  # no prefill kernel reads those
        has_cache = self.paged or self.seqused
        return PHASES.decodes(len_q, len_k, self.heads_q // self.heads_kv, has_cache=has_cache)

    def launched(self) -> Case:
        """The same call as ``launch`` computes it: each request by its own lengths."""
        if self.phase == "mla":
            return self
        case = replace(self, phase="mixed")
        # Where there is no cache, requests with no more keys than rows are prefill's all the same.
        enough = all if self.paged or self.seqused else any
        assert self.phase != "decode" or enough(case.decodes(*pair) for pair in self.lens), f"{self.name} is no decode"
        return case

    @property
    def streams(self) -> tuple[int, ...]:
        """The random stream of each request."""
        return self.ids or tuple(range(len(self.lens)))

    @property
    def softmax_scale(self) -> float:
        """The scale in use."""
        return float(self.head_dim**-0.5) if self.scale is None else self.scale

    def alone(self, index: int) -> Case:
        """The case of one request by itself."""
        return replace(self, name=f"{self.name}-alone{index}", lens=(self.lens[index],), ids=(self.streams[index],))


@dataclass
class Content:
    """One request: q [len_q, Hq, D], k and v [len_k, Hkv, *], thresholds and slopes [Hq].

    ``custom``: the mask, [Hq, len_q, len_k or Case.custom_keys].
    ``descales``: what q, k and v are multiplied by, [Hkv] each, by argument name.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    threshold: NDArray[np.float32] | None
    custom: NDArray[np.bool_] | None
    descales: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    slopes: NDArray[np.float32] | None = None

    def clone(self) -> Content:
        """A copy whose tensors can be written to."""
        return replace(self, q=self.q.clone(), k=self.k.clone(), v=self.v.clone())


def sinks_of(case: Case) -> NDArray[np.float32] | None:
    """One extra logit per query head."""
    return np.resize(np.array(_SINKS, np.float32), case.heads_q) if case.sinks else None


def slopes_of(case: Case, stream: int) -> NDArray[np.float32] | None:
    """Alibi slopes [Hq] of the request with random stream ``stream``."""
    first = stream if case.alibi_kind == "batch" else 0
    return 2.0 ** -(6 + (first + np.arange(case.heads_q, dtype=np.float32)) % 3) if case.alibi else None


def descales_of(case: Case, stream: int) -> dict[str, NDArray[np.float32]]:
    """q_descale, k_descale and v_descale [Hkv] of the request with random stream ``stream``; none if none are given."""
    if not case.descales:
        return {}
    first = stream * case.heads_kv if case.descales == "head" else 0
    step = 1 if case.descales == "head" else 0
    heads = first + step * np.arange(case.heads_kv)
    given = {name: values for name, values in _DESCALES.items() if name != "q_descale" or case.dtype == "e4m3"}
    return {name: np.array(values, np.float32)[heads % len(values)] for name, values in given.items()}


def threshold_of(case: Case, stream: int) -> NDArray[np.float32] | None:
    """Thresholds [Hq] of the request with random stream ``stream``."""
    if case.skip == "dense":
        return None
    first = {"float": 0, "batch": stream, "head": stream * case.heads_q}[case.threshold_kind]
    step = 1 if case.threshold_kind == "head" else 0
    values = [case.thresholds[(first + step * head) % len(case.thresholds)] for head in range(case.heads_q)]
    return np.array(values, np.float32)


def custom_bits(case: Case, stream: int, len_q: int, columns: int) -> NDArray[np.bool_] | None:
    """The custom mask of one request, [Hq, len_q, columns]; its top left corner does not depend on the lengths."""
    if case.mask != "custom":
        return None
    per_head = case.custom.endswith(("4", "4h")) or (case.q_layout == "ragged" and case.custom.endswith("3"))
    shared = case.custom.endswith(("2", "4h", "4s")) and case.q_layout == "batched"
    head = np.arange(case.heads_q, dtype=np.uint64)[:, None, None] * per_head
    row = np.arange(len_q, dtype=np.uint64)[None, :, None]
    key = np.arange(columns, dtype=np.uint64)[None, None, :]
    mix = row * 0x9E3779B1 + key * 0x85EBCA77 + head * 0xC2B2AE3D + np.uint64(97 + (0 if shared else stream) * 131)
    mix = (mix ^ (mix >> np.uint64(15))) * np.uint64(0x27D4EB2F) & np.uint64(0xFFFFFFFF)
    bits = (mix >> np.uint64(16)) % np.uint64(5) < 3
    bits &= row % 17 != 5  # some rows see nothing
    bits &= (row // case.group_rows + key // case.tile_n + head) % 4 != 2  # some groups see nothing of some tile
    return np.asarray(bits)


def content(case: Case, index: int) -> Content:
    """The content of request ``index`` of a case."""
    (len_q, len_k), stream = case.lens[index], case.streams[index]
    rng = np.random.default_rng([case.seed, stream, len_q, len_k])
    q = rng.standard_normal((len_q, case.heads_q, case.head_dim))
    k = rng.standard_normal((len_k, case.heads_kv, case.head_dim))
    v = rng.standard_normal((len_k, case.heads_kv, case.head_dim_v))
    custom = custom_bits(case, stream, len_q, case.custom_keys or len_k)
    descales = descales_of(case, stream)
    if len_q and len_k:
        heavy = _plant(case, q, k, custom, descales, rng)
        if case.phase == "mla":  # in columns that no score sees
            q[:, :, list(_LOUD_COLUMNS)] = 0.0
            k[:, :, list(_LOUD_COLUMNS)] = np.where(heavy, LOUD[case.dtype], 1.0)[:, :, None]
        else:
            v *= np.where(heavy, LOUD[case.keys_dtype], 1.0)[:, :, None]
    q, k, v = (narrow(q, case.dtype), *(narrow(x, case.keys_dtype) for x in (k, v)))
    if case.phase == "mla":
        v = k[..., : case.head_dim_v]
    return Content(q, k, v, threshold_of(case, stream), custom, descales, slopes_of(case, stream))


def narrow(x: F64, dtype: str) -> torch.Tensor:
    """Values rounded to a dtype; e4m3 has no Inf, so what is too large becomes its largest value."""
    wide = torch.from_numpy(x)
    return (wide.clamp(-448, 448) if dtype == "e4m3" else wide).to(DTYPES[dtype])


def _plant(
    case: Case,
    q: F64,
    k: F64,
    custom: NDArray[np.bool_] | None,
    descales: dict[str, NDArray[np.float32]],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Plant the pattern in q and k; returns which keys [len_k, Hkv] most rows find low, if tiles can be skipped."""
    scales = case.softmax_scale * descales.get("q_descale", np.ones(case.heads_kv, np.float32))
    scales = scales * descales.get("k_descale", np.ones(case.heads_kv, np.float32))
    rules = rules_of(case)
    if custom is None:
        custom = np.repeat(visible_keys(rules, len(q), len(k))[None], case.heads_q, axis=0)
    seen = custom_seen(rules, custom, len(k)).reshape(case.heads_kv, -1, len(q), len(k))
    if case.phase in ("decode", "mla"):
        seen = seen.swapaxes(1, 2).reshape(case.heads_kv, 1, -1, len(k))
        if case.mask not in ("window", "chunked"):
            rules = replace(rules, order="sink_first")  # every leaf starts from the maxima over tile 0
    low = plant(rules, case.pattern, q, k, seen, scales, rng)
    return np.asarray((low > 0.5) & (case.skip != "dense"))


def contents(case: Case) -> list[Content]:
    """The content of every request; tensors of its own, which can be written to."""
    return [one.clone() for one in _contents(case)]


@lru_cache(maxsize=16)
def _contents(case: Case) -> list[Content]:
    """Kept, since many tests run the same case over and over: under other schedules, with other mistakes."""
    return [content(case, index) for index in range(len(case.lens))]


def rules_of(case: Case, one: Content | None = None) -> Rules:
    """What the oracle needs to know about the call, and of request ``one`` its slopes."""
    sinks, slopes = sinks_of(case), None if one is None else one.slopes
    # The device's tanh is good to 2^-11 of its value: two scores may move apart by 2^-10 of the cap.
    margin = 1e-4 + (case.softcap * 2.0**-10 / math.log(2.0) if case.softcap else 0.0)
    return Rules(
        mask=case.mask,
        scale=case.softmax_scale,
        tile_n=case.tile_n,
        group_rows=case.group_rows,
        order=order_of(case.spec),
        window=case.window,
        chunk=case.chunk,
        custom_keys=case.custom_keys,
        softcap=case.softcap,
        alibi=None if slopes is None else slopes.astype(np.float64),
        sinks=None if sinks is None else sinks.astype(np.float64),
        margin=0.0 if case.exact else margin,
        # SM90's decode converts all it reads.
        p_dtype="e4m3" if case.dtype == "e4m3" and (case.arch == "sm100" or case.phase != "decode") else "",
        sum_bits=case.sum_bits,
    )


def answers(case: Case, held: list[Content]) -> list[Answer]:
    """The oracle's answer for every request; not to be written to, since they are kept for the same question."""
    return [_kept_answer(case, _Question(one)) for one in held]


class _Question:
    """What a request holds, compared by its bits."""

    def __init__(self, one: Content) -> None:
        self.one = one
        tensors = {name: getattr(one, name) for name in "qkv"}
        tensors = {name: x.view((torch.uint8, torch.int16)[x.itemsize - 1]).numpy() for name, x in tensors.items()}
        arrays = {"threshold": one.threshold, "custom": one.custom, "slopes": one.slopes, **one.descales}
        parts = [(name, x.shape, hashlib.sha256(x.tobytes()).digest()) for name, x in tensors.items()]
        parts += [(name, x.shape, hashlib.sha256(x.tobytes()).digest()) for name, x in arrays.items() if x is not None]
        self._bits = repr(parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and self._bits == other._bits

    def __hash__(self) -> int:
        return hash(self._bits)


@lru_cache(maxsize=16)
def _kept_answer(case: Case, question: _Question) -> Answer:
    one = question.one
    if case.decodes(len(one.q), len(one.k)):
        decoding = case if case.phase == "mla" else replace(case, phase="decode")
        leaves = Leaves(split.MIN_LEAF_KEYS[decoding.spec.head_dim], split.MAX_LEAVES)
        return attend_decoded(rules_of(decoding, one), leaves, _request(one))
    return attend(rules_of(replace(case, phase=""), one), _request(one))


def _request(one: Content) -> Request:
    """The request in true values: descales are multiplied in."""
    q, k, v = (x.double().numpy() for x in (one.q, one.k, one.v))
    if one.descales:
        by_head = {name: values.astype(np.float64)[None, :, None] for name, values in one.descales.items()}
        if "q_descale" in by_head:
            q = q * np.repeat(by_head["q_descale"], q.shape[1] // k.shape[1], axis=1)
        k, v = k * by_head["k_descale"], v * by_head["v_descale"]
    threshold = None if one.threshold is None else one.threshold.astype(np.float64)
    return Request(q, k, v, threshold, one.custom)
