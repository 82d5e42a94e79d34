"""Is what was timed right? Every timed case is checked before it is timed, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .inputs import Inputs
from .names import DENSE, is_ours, skip_name
from .shape import Shape

# 16-bit operands and outputs leave a relative error near 3e-3; a wrong tile leaves far more than 1e-2.
ROUNDING = 1e-2
ROUNDING_8_BITS = 5e-2  # P of 8 bits, which have 2^-4 of their value between them
SKIPPING = 1e-3  # skip over dense, the same rounding on both sides: what the threshold itself allows to drop
_SAMPLED_ROWS = 16


@dataclass(frozen=True)
class Check:
    """One comparison: ``value`` is a relative error or a count; ``limit`` the most that is accepted."""

    of: str
    against: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.value <= self.limit


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """‖out - reference‖ / ‖reference‖ in float32 or better; NaN if anything is not finite."""
    wide = torch.promote_types(reference.dtype, torch.float32)
    reference = reference.to(wide)
    return float((out.to(wide) - reference).norm() / reference.norm())


def sampled_rows(seqlen: int) -> list[int]:
    """Rows that stand for all: the first and last ones, and the rest spread evenly over odd and even tiles."""
    spread = [index * (seqlen - 1) // (_SAMPLED_ROWS - 5) for index in range(_SAMPLED_ROWS - 4)]
    return sorted({0, min(1, seqlen - 1), min(127, seqlen - 1), max(seqlen - 2, 0), *spread})


def truth(inputs: Inputs, shape: Shape) -> torch.Tensor:
    """The sampled rows in float64, [B, rows, Hq, D], from the definition of attention."""
    rows = torch.tensor(sampled_rows(shape.seqlen), device=inputs.q.device)
    hidden = torch.arange(shape.seqlen, device=inputs.q.device) > rows[:, None]
    qheads_per_kv = shape.heads_q // shape.heads_kv
    heads = []
    for head in range(shape.heads_q):
        k, v = (x[:, :, head // qheads_per_kv].double() for x in (inputs.k, inputs.v))
        scores = inputs.q[:, rows, head].double() @ k.transpose(1, 2) * shape.head_dim**-0.5
        if shape.causal:
            scores = scores.masked_fill(hidden, float("-inf"))
        heads.append(scores.softmax(dim=-1) @ v)
    return torch.stack(heads, dim=2)


def check_outputs(outputs: Mapping[str, torch.Tensor], inputs: Inputs, shape: Shape) -> list[Check]:
    """Check one output of each contender.

    All: written everywhere and finite, and near float64 on sampled rows. Peers and our skip kernels: near our dense
    kernel on every element (our dense kernel so beside cuDNN). At threshold 0: our dense kernel bit for bit.
    """
    rows = torch.tensor(sampled_rows(shape.seqlen), device=inputs.q.device)
    wanted = truth(inputs, shape)
    rounding = ROUNDING_8_BITS if shape.dtype == "e4m3" else ROUNDING
    checks = []
    for name, out in outputs.items():
        unwritten = int((~torch.isfinite(out)).sum())
        checks.append(Check(name, "elements that are not finite", unwritten, 0))
        checks.append(Check(name, "float64 on sampled rows", relative_error(out[:, rows], wanted), rounding))
        if name != DENSE and DENSE in outputs:
            limit = SKIPPING if is_ours(name) else rounding
            checks.append(Check(name, DENSE, relative_error(out, outputs[DENSE]), limit))
        if name == skip_name(0):
            different = int((out.view(torch.int16) != outputs[DENSE].view(torch.int16)).sum())
            checks.append(Check(name, "elements unlike our dense bit for bit", different, 0))
    return checks


def check_counts(name: str, counted: tuple[int, int], expected: tuple[int, int]) -> list[Check]:
    """Compare the kernel's raw (visited, skipped) counts with those that the inputs were planted to give."""
    parts = ("visited tiles too many or few", "skipped tiles too many or few")
    differences = (abs(got - want) for got, want in zip(counted, expected, strict=True))
    return [Check(name, part, difference, 0) for part, difference in zip(parts, differences, strict=True)]
