"""The shape of a measured call, and the work that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MASKS = ("causal", "full")
DTYPES = ("bf16", "fp16", "e4m3")


@dataclass(frozen=True)
class Shape:
    """Self-attention of ``batch`` requests of ``seqlen`` rows and keys each."""

    seqlen: int
    mask: str
    heads_q: int = 64
    heads_kv: int = 4
    head_dim: int = 128
    dtype: str = "bf16"
    batch: int = 1

    def __post_init__(self) -> None:
        """Refuse what the FLOP count would silently get wrong."""
        if self.mask not in MASKS:
            raise ValueError(f"mask: expected one of {', '.join(MASKS)} (got {self.mask!r})")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)} (got {self.dtype!r})")
        if self.heads_q % self.heads_kv:
            raise ValueError(f"heads_q: expected a multiple of heads_kv {self.heads_kv} (got {self.heads_q})")

    @property
    def causal(self) -> bool:
        """Whether a row sees only the keys up to its own."""
        return self.mask == "causal"

    @property
    def flops(self) -> float:
        """Floating-point operations by convention: 4*B*H*S*S*D, half of it where causal, whatever is skipped."""
        full = 4.0 * self.batch * self.heads_q * self.seqlen**2 * self.head_dim
        return full / 2 if self.causal else full

    @property
    def label(self) -> str:
        """Such as ``16384 causal bf16 q64/kv4/d128``."""
        heads = f"q{self.heads_q}/kv{self.heads_kv}/d{self.head_dim}"
        return f"{self.seqlen} {self.mask} {self.dtype} {heads}" + (f" b{self.batch}" if self.batch > 1 else "")


def drawn_lengths(low: int, high: int, count: int) -> tuple[int, ...]:
    """Lengths between ``low`` and ``high``, evenly spread over the logarithm, in no order."""
    rng = np.random.default_rng(0)
    return tuple(int(value) for value in np.exp(rng.uniform(np.log(low), np.log(high + 1), count)))
