"""Is what was timed right? Every timed case is checked before it is timed, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

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

    @property
    def plain(self) -> dict[str, object]:
        """For a result file."""
        return {**asdict(self), "value": float(f"{self.value:.3g}"), "passed": self.passed}


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """‖out - reference‖ / ‖reference‖ in float32 or better; NaN if anything is not finite."""
    wide = torch.promote_types(reference.dtype, torch.float32)
    reference = reference.to(wide)
    return float((out.to(wide) - reference).norm() / reference.norm())


def sampled_rows(seqlen: int) -> list[int]:
    """Rows that stand for all: the first and last ones, and the rest spread evenly over odd and even tiles."""
    spread = [index * (seqlen - 1) // (_SAMPLED_ROWS - 5) for index in range(_SAMPLED_ROWS - 4)]
    return sorted({0, min(1, seqlen - 1), min(127, seqlen - 1), max(seqlen - 2, 0), *spread})


def attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor | None, window: int = 0
) -> torch.Tensor:
    """Rows of one request in float64, [rows, Hq, Dv], from the definition of attention.

    Args:
        q: these rows, [rows, Hq, D].
        k: keys of the request in their order, [len, Hkv, D].
        v: likewise, [len, Hkv, Dv].
        ends: the last key that each row sees; None: all rows see all.
        window: keys up to that one that a row sees; 0: all.
    """
    hidden = torch.zeros(len(q), len(k), dtype=torch.bool, device=q.device)
    if ends is not None:
        at = torch.arange(len(k), device=q.device)
        hidden = at > ends[:, None]
        if window:
            hidden |= at <= ends[:, None] - window
    qheads_per_kv = q.shape[1] // k.shape[1]
    heads = []
    for head in range(k.shape[1]):
        rows = q[:, head * qheads_per_kv : (head + 1) * qheads_per_kv].double()
        scores = rows @ k[:, head].double().t() * q.shape[-1] ** -0.5
        heads.append(scores.masked_fill(hidden[:, None], float("-inf")).softmax(dim=-1) @ v[:, head].double())
    return torch.cat(heads, dim=1)


def truth(inputs: Inputs, shape: Shape) -> torch.Tensor:
    """The sampled rows in float64, [B, rows, Hq, D]."""
    rows = torch.tensor(sampled_rows(shape.seqlen), device=inputs.q.device)
    ends = rows if shape.causal else None
    requests = zip(inputs.q[:, rows], inputs.k, inputs.v, strict=True)
    return torch.stack([attended(q, k, v, ends) for q, k, v in requests])


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
