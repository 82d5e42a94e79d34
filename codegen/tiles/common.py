"""What all tiles have in common: shared memory in panels, warpgroups, registers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from ..spec import KernelSpec

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "e4m3": 1}
PANEL_BYTES = 128  # of a row: the width of the swizzle, so tiles lie in shared memory as panels this wide
GROUP_THREADS = 128  # a warpgroup
MAX_SMEM_BYTES = 232448  # 227 KB, the opt-in limit of one CTA on SM90 and SM100
_SM_REGISTERS = 65536
_CTA_BYTES = 1024  # that the system takes for itself, of the SM's 228 KB
_ALIGN = 1024  # of a 128-byte-swizzled TMA destination


def panel_columns(dtype: str) -> int:
    """Elements in one row of a panel."""
    return PANEL_BYTES // ELEMENT_BYTES[dtype]


def row_bytes(columns: int, dtype: str) -> int:
    """Bytes that a row of ``columns`` elements takes in shared memory: whole panels."""
    return -(-columns // panel_columns(dtype)) * PANEL_BYTES


@dataclass(frozen=True)
class Tile:
    """Launch geometry of one kernel: ``tile_m`` query rows by ``tile_n`` keys, ``stages`` K, ``stages_v`` V slots.

    ``separate_o``: O has shared memory of its own, and does not share Q's. ``ctas_per_sm`` run beside each other.
    """

    tile_m: int
    tile_n: int
    stages: int
    stages_v: int
    separate_o: bool
    stages_q: int = 1
    ctas_per_sm: int = 1

    def __post_init__(self) -> None:
        """setmaxnreg only moves registers that the CTA got at launch: asking for more would wait for ever."""
        warpgroups = len(self.registers)
        at_launch = _SM_REGISTERS // (self.ctas_per_sm * warpgroups * GROUP_THREADS) // 8 * 8 * warpgroups
        assert sum(self.registers) <= at_launch, (self, at_launch)

    @property
    @abstractmethod
    def group_rows(self) -> int:
        """Rows that decide together."""

    @property
    @abstractmethod
    def registers(self) -> tuple[int, ...]:
        """Registers per thread of every warpgroup, after setmaxnreg."""

    @property
    @abstractmethod
    def o_rows(self) -> int:
        """Rows of O's own buffer, where it has one."""

    @property
    @abstractmethod
    def barrier_bytes(self) -> int:
        """Shared memory besides Q, K, V and O, padded to the swizzle's alignment."""

    @property
    def consumers(self) -> int:
        """Row groups of a CTA."""
        return self.tile_m // self.group_rows

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return GROUP_THREADS * len(self.registers)

    @abstractmethod
    def traits(self, spec: KernelSpec) -> Mapping[str, int | bool]:
        """C++ constants of ``Traits`` that only kernels of this architecture and phase have: name to value."""

    def tmem_columns(self, spec: KernelSpec) -> int:
        """Tensor memory columns that a CTA allocates; 0 on architectures without tensor memory."""
        del spec
        return 0

    def converted_bytes(self, spec: KernelSpec) -> int:
        """Of tiles that what copies bring is converted to."""
        del spec
        return 0

    def v_slot_bytes(self, spec: KernelSpec) -> int:
        """Of one tile of values."""
        return self.tile_n * row_bytes(spec.head_dim_v, spec.keys_dtype)

    def smem_bytes(self, spec: KernelSpec) -> int:
        """Dynamic shared memory of a kernel; ``kernel.cuh`` asserts that the size of its storage agrees."""
        q_row = row_bytes(spec.head_dim, spec.dtype)
        k_slot = self.tile_n * row_bytes(spec.head_dim, spec.keys_dtype)
        o_row = row_bytes(spec.head_dim_v, spec.out_dtype)
        assert self.separate_o or not self.o_rows or o_row <= q_row, (
            spec.name,
            "O does not fit the memory that it shares with Q",
        )
        q = self.stages_q * self.tile_m * q_row
        kv = self.stages * k_slot + self.stages_v * self.v_slot_bytes(spec) + self.converted_bytes(spec)
        o = self.o_rows * o_row if self.separate_o else 0
        total = q + kv + o + self.barrier_bytes
        assert total % _ALIGN == 0 and total <= MAX_SMEM_BYTES, (spec.name, total)
        assert self.ctas_per_sm * (total + _CTA_BYTES) <= MAX_SMEM_BYTES + _CTA_BYTES, (spec.name, total)
        return total
