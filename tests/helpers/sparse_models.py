"""Models that are nothing but what sparsity sees of one: attention modules with names, heads and a call."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch


class ToyAttention(torch.nn.Module):
    """Named like attention, with a ``layer_idx``."""

    def __init__(self, layer_idx: int, config: SimpleNamespace) -> None:
        super().__init__()
        self.layer_idx, self.config = layer_idx, config
        self.proj = torch.nn.Linear(4, 4)


class ToyLayer(torch.nn.Module):
    def __init__(self, index: int, config: SimpleNamespace) -> None:
        super().__init__()
        self.self_attn = ToyAttention(index, config)
        self.mlp = torch.nn.Linear(4, 4)


class ToyModel(torch.nn.Module):
    """``model.layers.N.self_attn``, and a configuration with heads that saves itself as transformers' do."""

    def __init__(self, layers: int = 4, heads: int = 2, head_dim: int = 64) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=heads, head_dim=head_dim, model_type="toy")
        self.layers = torch.nn.ModuleList(ToyLayer(index, self.config) for index in range(layers))

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(vars(self.config)))


class GapModel(ToyModel):
    """Whose tiles are known: the best score of each lies below the maximum by a gap, spread evenly over ``[0, width]``.

    A tile is skipped where ``exp(-gap) < threshold * length ** power / 1000 ** power``, so a layer skips the share
    ``1 + ln(threshold') / width``, exactly what a fit with ``b = width`` says. Losses add up: a head with weight w that
    uses threshold' t adds ``w * t``. Where other layers skip too, a layer skips ``echo`` more.
    """

    TILES = 10_000

    def __init__(self, widths: list[float], heads: int = 2, *, power: float = 1.0, echo: float = 0.0) -> None:
        super().__init__(len(widths), heads)
        self.widths, self.power, self.echo = widths, power, echo
        self.weights = [[0.01 * (1 + layer) * (1 + head) for head in range(heads)] for layer in range(len(widths))]
        self.runs = 0

    def forward(self, sample: list[int], phase: str, offset: float = 0.0) -> tuple[float, dict[str, list[float]]]:
        """Count as kernels would, into whatever policies say; returns the loss, and what heads dropped."""
        self.runs += 1
        loss, dropped, length = 2.0, {}, len(sample)
        rules = [layer.self_attn.__dict__.get("skimattn_policy") for layer in self.layers]
        busy = sum(policy is not None and policy.rule(phase) is not None for policy in rules)
        for index, policy in enumerate(rules):
            rule = policy.rule(phase) if policy is not None else None
            if rule is None:
                continue
            heads, masses = len(self.weights[index]), []
            threshold = torch.as_tensor(rule.threshold(length)).expand(1, heads)[0].tolist()
            counts = policy.collector.counts(phase, 1, heads, torch.device("cpu")) if policy.collector else None
            for head in range(heads):
                seen = threshold[head] * (length / 1000) ** self.power
                share = 1 + math.log(seen) / self.widths[index] + offset if seen > 0 else 0.0
                share = min(max(share + (self.echo if share > 0 and busy > 1 else 0.0), 0.0), 1.0)
                masses.append(self.weights[index][head] * seen)
                loss += masses[-1]
                if counts is not None:
                    counts[0, head] += torch.tensor([self.TILES, round(self.TILES * share)])
            dropped[f"layers.{index}.self_attn"] = masses
        return loss, dropped
