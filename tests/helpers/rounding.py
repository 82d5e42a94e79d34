"""How far an engine's results may be off: as far as its own attention is, in the same precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Truth:
    """What results should be, and by how much those of the engine's own attention in bf16 are off."""

    exact: torch.Tensor
    mean: float
    most: float

    @classmethod
    def of(cls, exact: torch.Tensor, own: torch.Tensor) -> Truth:
        """``exact``: the engine's own results in float32; ``own``: in bf16."""
        off = (own - exact).abs()
        return cls(exact, off.mean().item(), off.max().item())

    def check(self, got: torch.Tensor) -> None:
        """Refuse results that are farther off than rounding explains."""
        assert got.shape == self.exact.shape
        off = (got - self.exact).abs()
        assert torch.isfinite(off).all()
        assert off.mean().item() <= 1.3 * self.mean + 1e-5, f"{off.mean().item():.5f} on average, own {self.mean:.5f}"
        assert off.max().item() <= 2.5 * self.most + 1e-4, f"{off.max().item():.4f} at most, own {self.most:.4f}"
