"""A stack of decoder layers with random weights, whose attention is ours: a step as a model takes it."""

from __future__ import annotations

import copy
from typing import Any

import skimattn
import torch
import torch.nn.functional as F
from skimattn.sparse import LayerPolicy, PhaseRule, attach_policy, policy_of
from skimattn.sparse.call import skip_arguments
from torch import nn

from .statlog_work import Work

_PAGE = 64


class Attention(nn.Module):
    """Self-attention of one layer, under the rules of its policy.

    Args:
        work: sizes.
        layer_idx: its number.
        device: of weights and cache.
    """

    def __init__(self, work: Work, layer_idx: int, device: str) -> None:
        """With a full cache, if it decodes."""
        super().__init__()
        self.work, self.layer_idx = work, layer_idx
        columns = (work.heads_q + 2 * work.heads_kv) * work.head_dim
        self.qkv = linear(work.hidden, columns, device)
        self.out = linear(work.heads_q * work.head_dim, work.hidden, device)
        self.cache: dict[str, Any] = _cache(work, device) if work.phase == "decode" else {}
        attach_policy(self, LayerPolicy({work.phase: PhaseRule(work.threshold, 0.0)}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, rows, hidden] to the same."""
        work, policy = self.work, policy_of(self)
        heads = self.qkv(x).view(*x.shape[:2], -1, work.head_dim)
        q, k, v = heads.split([work.heads_q, work.heads_kv, work.heads_kv], 2)
        options: dict[str, Any] = self.cache or {"k": k, "v": v}
        if policy:
            options = options | skip_arguments(
                policy, work.phase, work.length, batch=work.batch, heads_q=work.heads_q, device=x.device
            )
        attended = skimattn.launch(skimattn.Params(q=q, mask="causal", **options))
        assert isinstance(attended, torch.Tensor)
        return self.out(attended.flatten(2))  # type: ignore[no-any-return]


def _cache(work: Work, device: str) -> dict[str, Any]:
    """N(0,1) keys and values on pages, of which each request has its own."""
    pages = work.length // _PAGE
    pool = torch.randn(2, work.batch * pages, _PAGE, work.heads_kv, work.head_dim, device=device).bfloat16()
    table = torch.arange(work.batch * pages, dtype=torch.int32, device=device).view(work.batch, pages)
    used = torch.full((work.batch,), work.length, dtype=torch.int32, device=device)
    return {"k": pool[0], "v": pool[1], "page_table": table, "seqused_k": used, "max_seqlen_k": work.length}


class Layer(nn.Module):
    """Attention and a gated MLP, each behind a norm and beside a residual."""

    def __init__(self, work: Work, layer_idx: int, device: str) -> None:
        """With random weights."""
        super().__init__()
        self.self_attn = Attention(work, layer_idx, device)
        self.up = linear(work.hidden, 2 * work.inner, device)
        self.down = linear(work.inner, work.hidden, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, rows, hidden] to the same."""
        x = x + self.self_attn(F.rms_norm(x, x.shape[-1:]))
        gate, up = self.up(F.rms_norm(x, x.shape[-1:])).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


def linear(inner: int, outer: int, device: str) -> nn.Linear:
    """bf16, without a bias, of weights that keep what comes in at its size."""
    made = nn.Linear(inner, outer, bias=False, device=device, dtype=torch.bfloat16)
    nn.init.normal_(made.weight, std=inner**-0.5)
    return made


def stack_of(work: Work, device: str) -> nn.Sequential:
    """The layers of a row."""
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(work, index, device) for index in range(work.layers))).requires_grad_(False)


def twin_of(stack: nn.Sequential) -> nn.Sequential:
    """The same stack over the same weights and caches, with policies of its own."""
    caches = [layer.self_attn.cache for layer in stack if isinstance(layer, Layer)]
    shared = [*stack.parameters(), *caches]
    return copy.deepcopy(stack, {id(item): item for item in shared})


def input_of(work: Work, device: str) -> torch.Tensor:
    """bf16 [B, rows, hidden], N(0,1)."""
    rows = work.length if work.phase == "prefill" else 1
    return torch.randn(work.batch, rows, work.hidden, device=device).bfloat16()
