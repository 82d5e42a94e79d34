"""``python -m bench dump MODEL TEXT``: q, k and v that attention is given in every layer, for ``bench skip``.

MODEL is a folder of transformers, or a GGUF file. One prefill of the first tokens of TEXT runs (on a GPU if there is
one); what is taken is what comes to attention: rotated, and as many KV heads as the model has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from . import qkv_file
from .qkv_file import Tensors

_NAME = "skimattn_bench_dump"  # of the attention that takes what it is given
_KINDS = ("full_attention", "sliding_attention")
_REFUSED = ("softcap", "s_aux", "position_bias")  # change scores in a way that a file does not say


class Taken:
    """What an attention function takes of the layers that are wanted, before it lets another one compute.

    Args:
        layers: numbers; None: all.
        attention: of transformers, which computes.
    """

    def __init__(self, layers: Container[int] | None, attention: Any) -> None:
        """Nothing is taken yet."""
        self.tensors: dict[int, Tensors] = {}
        self.windows: dict[int, int] = {}
        self._layers, self._attention = layers, attention

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
    ) -> Any:
        """As transformers calls attention; q [1, Hq, S, D], k and v [1, Hkv, S, D]."""
        number = int(module.layer_idx)
        if self._layers is None or number in self._layers:
            _refuse(number, module, query, options)
            q, k, v = (x[0].transpose(0, 1).contiguous().cpu() for x in (query, key, value))
            self.tensors[number], self.windows[number] = (q, k, v), int(options.get("sliding_window") or 0)
        return self._attention(module, query, key, value, mask, **options)


def _refuse(number: int, module: Any, query: torch.Tensor, options: dict[str, Any]) -> None:
    """``ValueError`` for what a file cannot say."""
    scaling, usual = options.get("scaling"), query.shape[-1] ** -0.5
    if scaling is not None and abs(scaling / usual - 1) > 1e-6:
        raise ValueError(f"layer {number}: scaling: expected head_dim ** -0.5, {usual:g} (got {scaling:g})")
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise ValueError(f"layer {number}: mask: expected a causal one (got one that is not)")
    kinds = getattr(getattr(module, "config", None), "layer_types", None) or []
    if kinds and kinds[number] not in _KINDS:
        raise ValueError(f"layer {number}: layer_types: expected one of {', '.join(_KINDS)} (got {kinds[number]})")
    for name in _REFUSED:
        if options.get(name) is not None:
            raise ValueError(f"layer {number}: {name}: expected none (got {options[name]!r:.60})")


def taken(model: Any, tokens: torch.Tensor, layers: Container[int] | None = None) -> Taken:
    """Run a model once and take what its attention is given.

    Args:
        model: of transformers, which is left as it was.
        tokens: int64 [1, S].
        layers: numbers of those to take; None: all.

    Raises:
        ValueError: a layer's attention is not causal, or is scaled, capped or sunk otherwise.
    """
    transformers = import_module("transformers")
    functions = import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    masks = import_module("transformers.masking_utils").ALL_MASK_ATTENTION_FUNCTIONS
    found = Taken(layers, functions["sdpa"])
    transformers.AttentionInterface.register(_NAME, found)
    transformers.AttentionMaskInterface.register(_NAME, masks["sdpa"])
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        with torch.no_grad():
            model.get_decoder()(tokens, use_cache=False)  # without the head, whose logits of a long text are large
    finally:
        model.set_attn_implementation(before)
    return found


def load(path: Path) -> tuple[Any, Any]:
    """A model in bf16 and its tokenizer.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: transformers is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a folder of a model or a GGUF file (there is none)")
    try:
        import_module("transformers")
    except ModuleNotFoundError as error:
        raise ValueError("transformers: expected to be installed (pip install 'skimattn[hf]')") from error
    from skimattn.integrations.transformers.loading import read

    model, tokenizer = read(path, torch.bfloat16)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def tokens_of(tokenizer: Any, file: Path, count: int) -> torch.Tensor:
    """The first tokens of a text, int64 [1, count]; ``ValueError`` if it is shorter."""
    found: torch.Tensor = tokenizer(file.read_text(encoding="utf-8", errors="replace"), return_tensors="pt").input_ids
    if found.shape[1] < count:
        raise ValueError(f"{file}: expected a text of at least {count} tokens (got {found.shape[1]})")
    return found[:, :count]


def main(arguments: Sequence[str]) -> int:
    """Write the file. Exit status 1, and what is wrong, if that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m bench dump", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder of transformers, or a GGUF file")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", nargs="+", type=int, help="numbers; default: all")
    parser.add_argument("--out", type=Path, help="default: MODEL-TOKENS.safetensors in this folder")
    options = parser.parse_args(arguments)
    name = options.model.resolve().stem
    out = options.out or Path(f"{name}-{options.tokens}{qkv_file.SUFFIXES[0]}")
    try:
        qkv_file.suffix_of(out)
        model, tokenizer = load(options.model)
        tokens = tokens_of(tokenizer, options.text, options.tokens).to(model.device)
        found = taken(model, tokens, options.layers)
        if not found.tensors:
            raise ValueError(f"--layers: expected numbers of layers of the model (got {options.layers})")
        qkv_file.write(out, found.tensors, found.windows, name, options.text.name)
    except (OSError, ValueError) as error:
        print(f"bench dump: {error}", file=sys.stderr)
        return 1
    for layers in qkv_file.layers_of(out):
        print(f"{out}: layers {', '.join(map(str, layers.numbers))}: {layers.kind}")
    return 0
