"""The small kernels of kernels/rules_sm100.cu: how to run one, and what is said of those that break a rule."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from skimattn.codegen.params import aligned_block

from tests.emulator import EmulatedKernel, compile_source

SOURCE = Path(__file__).parent / "kernels" / "rules_sm100.cu"
THREADS, SMEM_BYTES = 256, 97 * 1024 + 1024
COLUMNS = 256  # of D, and of A in tensor memory behind it


@cache
def names() -> list[str]:
    return re.findall(r"^KERNEL\((\w+)\)", SOURCE.read_text(), re.MULTILINE)


@cache
def rules() -> EmulatedKernel:
    cases = "\n".join(f"case {i}: return rules::{name}(params, shared);" for i, name in enumerate(names()))
    entry = f"""
extern "C" __global__ void rules_sm100(const __grid_constant__ skimattn::Params params) {{
  auto& shared = *reinterpret_cast<rules::Shared*>(skimattn::ptx::dynamic_smem());
  switch (params.batch) {{
{cases}
  }}
}}
"""
    return compile_source("rules_sm100", SOURCE.read_text() + entry)


@dataclass
class Bench:
    """What a kernel is given: shared memory, tensor memory and the steps of its product."""

    image: np.ndarray = field(default_factory=lambda: np.zeros(96 * 1024, np.uint8))
    d: np.ndarray = field(default_factory=lambda: np.zeros((128, COLUMNS), np.float32))  # in and out
    a: np.ndarray | None = None  # [128, COLUMNS] uint32, for tensor memory
    instruction: int = 0
    steps: list[tuple[int, int]] = field(default_factory=list)
    accumulate: bool = False

    def run(
        self, name: str, schedule: str = "late", seed: int = 0, *, strict_products: bool = False, timeout: float = 30.0
    ) -> None:
        control = np.zeros(6 + 4 * 16, np.uint32)
        control[:5] = self.image.size // 4, len(self.steps), self.instruction, self.a is not None, self.accumulate
        control[6 : 6 + 4 * len(self.steps)] = np.array(self.steps, np.uint64).reshape(-1).view(np.uint32)
        block, owner = aligned_block()
        block.batch, block.out = names().index(name), self.d.ctypes.data
        block.page_table, block.custom_mask = control.ctypes.data, self.image.ctypes.data
        if self.a is not None:
            block.cu_seqlens_q = self.a.ctypes.data
        rules().launch(
            block,
            1,
            THREADS,
            SMEM_BYTES,
            schedule=schedule,
            seed=seed,
            timeout=timeout,
            strict_products=strict_products,
        )
        del owner
