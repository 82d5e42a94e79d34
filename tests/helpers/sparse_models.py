"""Models that are nothing but what sparsity sees of one: attention modules with names, heads and a call."""

from __future__ import annotations

import json
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
