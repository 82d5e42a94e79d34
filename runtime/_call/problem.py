"""``Problem``: a validated call in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..params import Params


@dataclass(frozen=True, slots=True)
class Problem:
    """A validated call in plain numbers: what dispatch, the plan and the reference agree on.

    ``rows`` and ``keys`` are the sizes of the row dimensions of q and k (over the whole batch where ragged, of a page
    where paged); ``len_q`` and ``len_k`` bound one request's.
    """

    params: Params
    device: torch.device
    dtype: str
    out_dtype: str
    batch: int
    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    ragged: bool
    rows: int
    keys: int
    len_q: int
    len_k: int
    page_size: int
    mask: str
    window: tuple[int, int]
    chunk_size: int
    softmax_scale: float
    softcap: float
    skip: str
    threshold: float

    @property
    def paged(self) -> bool:
        """Whether keys and values are page pools."""
        return self.page_size > 0

    @property
    def empty(self) -> bool:
        """Whether there is no row to write."""
        return self.batch == 0 or self.rows == 0

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output: as q, with the values' columns."""
        return (*self.params.q.shape[:-1], self.head_dim_v)

    @property
    def lse_shape(self) -> tuple[int, ...]:
        """Shape of the log-sum-exp: as q, without columns."""
        return tuple(self.params.q.shape[:-1])
