"""``Form`` and ``Problem``: a checked call without, and with, its sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..params import Params
from .latent import HEAD_DIM


def shares_offsets(params: Params) -> bool:
    """Whether one tensor holds the offsets of queries and keys."""
    return params.cu_seqlens_q is params.cu_seqlens_k is not None


@dataclass(slots=True, eq=False)
class Form:
    """What calls have in common that differ in sizes, addresses and thresholds only. Made once, never changed.

    ``softmax_scale`` is None where it follows from the head dim. ``given`` names the tensors that such calls have,
    ``checks`` is what has to be checked of the sizes of the optional ones among them.
    """

    device: torch.device
    dtype: str
    kv_dtype: str
    out_dtype: str
    ragged: bool
    paged: bool
    mask: str
    window: tuple[int, int]
    chunk_size: int
    softmax_scale: float | None
    softcap: float
    alibi: bool
    skip: str
    given: tuple[str, ...]
    checks: tuple[Callable[[Problem], None], ...]


@dataclass(slots=True, eq=False)
class Problem:
    """A validated call in plain numbers: what dispatch, the plan and the reference agree on. Never changed.

    ``rows`` and ``keys`` are the sizes of the row dimensions of q and k (over the whole batch where ragged, of a page
    where paged); ``len_q`` and ``len_k`` bound one request's. ``out_shape`` is q's with the values' columns.
    """

    params: Params
    form: Form
    batch: int
    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    rows: int
    keys: int
    len_q: int
    len_k: int
    page_size: int
    softmax_scale: float
    threshold: float
    out_shape: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.form.device

    @property
    def dtype(self) -> str:
        """Of q, as kernel specs call it."""
        return self.form.dtype

    @property
    def keys_dtype(self) -> str:
        """Of k and v."""
        return self.form.dtype if self.form.kv_dtype == "same" else self.form.kv_dtype

    @property
    def ragged(self) -> bool:
        """Whether the requests' rows lie end to end; of keys, ``cu_seqlens_k`` says it."""
        return self.form.ragged

    @property
    def paged(self) -> bool:
        """Whether keys and values are page pools."""
        return self.form.paged

    @property
    def mask(self) -> str:
        """The mask's name in kernel specs."""
        return self.form.mask

    @property
    def window(self) -> tuple[int, int]:
        """Keys to the left and right, -1 = unlimited; of chunked masks both are numbers of keys inside the chunk."""
        return self.form.window

    @property
    def chunk_size(self) -> int:
        """Keys per chunk, 0 without chunks."""
        return self.form.chunk_size

    @property
    def custom_keys(self) -> int:
        """How many keys, the last ones of each request, the custom mask covers; 0 = all."""
        return int(self.params.custom_mask_keys or 0)

    @property
    def softcap(self) -> float:
        """The cap of the scores, 0 = none."""
        return self.form.softcap

    @property
    def skip(self) -> str:
        """``dense``, ``skip`` or ``stat``."""
        return self.form.skip

    @property
    def latent(self) -> bool:
        """Whether values are the first columns of the keys (MLA)."""
        return self.head_dim == HEAD_DIM

    @property
    def varlen_q(self) -> bool:
        """Whether requests have row counts of their own."""
        return self.form.ragged or self.params.seqused_q is not None

    @property
    def varlen_k(self) -> bool:
        """Whether they may have key counts of their own."""
        return self.form.paged or self.params.cu_seqlens_k is not None or self.params.seqused_k is not None

    @property
    def has_cache(self) -> bool:
        """Whether keys come from a cache: which requests are decoded depends on it."""
        return self.form.paged or self.params.seqused_k is not None

    @property
    def own_keys(self) -> bool:
        """Whether every request is known to have as many keys as rows, since they share their offsets."""
        params = self.params
        return shares_offsets(params) and params.seqused_q is params.seqused_k is None

    @property
    def empty(self) -> bool:
        """Whether there is no row to write."""
        return self.batch == 0 or self.rows == 0

    @property
    def lse_shape(self) -> tuple[int, ...]:
        """Shape of the log-sum-exp: as q, without columns."""
        return tuple(self.params.q.shape[:-1])
