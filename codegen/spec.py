"""A kernel's specification: one frozen value that names everything that makes two kernels differ."""

from __future__ import annotations

from dataclasses import dataclass

from .features import Value, pack


@dataclass(frozen=True, order=True)
class KernelSpec:
    """What one kernel computes. Field names and values are those of :mod:`codegen.features`."""

    arch: str
    phase: str
    dtype: str
    out_dtype: str
    head_dim: int
    head_dim_v: int
    mask: str
    paged: bool
    skip: str
    softcap: bool
    alibi: bool
    kv_dtype: str = "same"

    @property
    def values(self) -> dict[str, Value]:
        """Every feature's value by name."""
        return dict(vars(self))

    @property
    def key(self) -> int:
        """The packed feature bits that dispatch looks kernels up by."""
        return pack(self.values)

    @property
    def keys_dtype(self) -> str:
        """What keys and values are stored in."""
        return self.dtype if self.kv_dtype == "same" else self.kv_dtype

    @property
    def products_dtype(self) -> str:
        """What products multiply. SM90's decode converts keys and values of 8 bits, and such queries, to 16 bits."""
        return self.out_dtype if self.phase == "decode" and self.arch == "sm90" else self.dtype

    @property
    def name(self) -> str:
        """A readable, unique symbol and file name. Never parsed: metadata carries the fields."""
        dims = f"d{self.head_dim}" if self.head_dim == self.head_dim_v else f"d{self.head_dim}v{self.head_dim_v}"
        parts = [self.arch, self.phase, self.dtype, dims, self.mask, self.skip]
        if self.out_dtype != self.dtype:
            parts.insert(3, f"out_{self.out_dtype}")
        if self.kv_dtype != "same":
            parts.insert(3, f"kv_{self.kv_dtype}")
        parts += [flag for flag in ("paged", "softcap", "alibi") if getattr(self, flag)]
        return "skim_" + "_".join(parts)
