"""Which kernels a model needs, read from its ``config.json`` in Hugging Face's form.

Only what decides over a kernel is read. Where the file does not say enough, kernels for every answer are chosen and the
reason says so; what would need another kernel in a way that is not known here is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import matrix, sets
from .arch import ARCHS
from .errors import ArgumentError, expected
from .spec import KernelSpec

Config = Mapping[str, Any]

_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}
_STEP = 8  # a head_dim of 16-bit types is a multiple of it, as TMA takes rows of whole 16 bytes
_TEXT_PARTS = ("text_config", "language_config", "llm_config")  # of models that also see or hear
# What older configurations call them.
_ALIASES = {"num_attention_heads": ("n_head", "n_heads"), "hidden_size": ("n_embd", "d_model")}
_MASKS = {
    "full_attention": "causal",
    "attention": "causal",
    "sliding_attention": "window",
    "chunked_attention": "chunked",
}
_WITHOUT_ATTENTION = ("linear_attention", "conv", "mamba", "recurrent", "mlp", "moe")
_WIDTHS = {"window": "sliding_window", "chunked": "attention_chunk_size"}
_DECODERS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")  # how the names of architectures end
_MLA = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_HEAD_DIMS = ("head_dim", "qk_head_dim", *_MLA)  # of MLA, qk_head_dim is the sum of two others
_REFUSED = {
    "index_topk": "an indexer that chooses the keys of each query",
    "prefix_lm": "a prefix that all rows see, which is mask=custom",
    "relative_attention": "products with positions that are added to scores",
    "relative_attention_num_buckets": "learned biases that are added to scores",
}
# What a part leaves out, as it is the default of its class, where that decides over a kernel.
_DEFAULTS: Mapping[str, Config] = {
    "gemma2": {"head_dim": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0},
    "gemma3_text": {"head_dim": 256, "sliding_window": 4096},
}
# Names that sound as if they were about scores or masks, and those of them that are read or decide over no kernel.
_SOUNDS = re.compile("attn|attention|window|softcap|chunk|mask|sparse|bidirectional")
_HARMLESS = re.compile(
    r".*(_token|_token_id|_token_index|_drop|_dropout|_pdrop|_prob|_bias|_eps|_multiplier|_scale|_sinks?)"
    r"|_?attn_implementation.*|(attn|final|router)_logit_softcapping|attn_temperature_tuning|attn_config"
    r"|(use_)?sliding_window(_pattern)?|max_window_layers|attention_chunk_size|chunk_size_feed_forward|mask_(time|feature)_.*"
    r"|use_bidirectional_attention|cross_attention_layers|num_attention_heads|query_pre_attn_scalar|full_attention_interval"
    r"|(scale_)?attention_softmax_in_fp32|scale_attn_.*|reorder_and_upcast_attn"
)
_OF_OTHER_LAYERS = ("linear_", "mamba_", "conv_", "ssm_")  # how names begin that say nothing about attention


@dataclass(frozen=True)
class Need:
    """The kernels of all architectures that a model calls, and a line for each thing that decided."""

    specs: tuple[KernelSpec, ...]
    reasons: tuple[str, ...]


def read(path: Path) -> Need:
    """What the model of a ``config.json``, or of the folder that holds it, needs.

    Raises:
        ArgumentError: it is no such file, or no kernel computes what it says.
        OSError: it cannot be read.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise expected("--model", "a config.json", f"{file}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise expected("--model", "a config.json, which holds an object", f"{file}: {type(config).__name__}")
    try:
        return needed(config)
    except ArgumentError as error:
        raise ArgumentError(f"--model {file}: {error}") from error


def needed(config: Config) -> Need:
    """As :func:`read`, of what the file holds."""
    part, notes = _text_part(config)
    _refuse_unknown(part)
    dtypes, of_dtypes = _dtypes(part)
    dims, of_dims = _head_dims(part)
    masks, of_masks = _masks(part)
    softcap, alibi = _number(part, "attn_logit_softcapping") > 0, _has_alibi(part)
    specs = sets.with_helpers(
        spec
        for spec in matrix.all_specs()
        if spec.dtype in dtypes
        and (spec.head_dim, spec.head_dim_v) == matrix.head_dims(spec.arch, spec.phase, spec.dtype, *dims)
        and spec.mask in masks
        and (spec.softcap, spec.alibi) == (softcap, alibi)
        and spec.kv_dtype == "same"
    )
    if not specs:
        largest = max(matrix.HEAD_DIMS["prefill"])
        raise expected("head_dim", f"at most {largest}, of q and k and of v", dims)
    switches = f"softcap {_word(softcap)}: attn_logit_softcapping; alibi {_word(alibi)}"
    always = (
        "prefill, and decode with what combines its parts, where they exist; paged and not; dense, skip and stat: "
        "calls decide. Numbers of heads, sinks and LSE need no other kernel. Over caches of 8 bits: --only "
        "kv_dtype=e4m3, without --model"
    )
    return Need(specs, (of_dtypes, of_dims, of_masks, switches, always, *notes, *_not_understood(part)))


def _word(value: bool) -> str:
    return "yes" if value else "no"


def _text_part(config: Config) -> tuple[Config, list[str]]:
    """The part that describes the decoder, and what is said of the others."""
    name = next((name for name in _TEXT_PARTS if isinstance(config.get(name), dict)), "")
    part: Config = config
    if name:
        above = {key: config[key] for key in ("dtype", "torch_dtype") if config.get(key)}
        left_out = {key: value for key, value in _defaults(config[name]).items() if key not in config[name]}
        part = {**left_out, **above, **config[name], "architectures": config.get("architectures")}
    others = [
        key
        for key, value in config.items()
        if key != name and isinstance(value, dict) and ("hidden_size" in value or "num_attention_heads" in value)
    ]
    notes = [f"not read: {', '.join(others)}; kernels of theirs compile on first use"] if others else []
    if name and left_out:
        notes.append(f"{', '.join(left_out)}: not in {name}, so the defaults of {part['model_type']}")
    if config.get("quantization_config"):
        notes.append("quantization_config: of weights; for q, k and v of 8 bits: --only dtype=e4m3, without --model")
    return part, notes


def _defaults(part: Config) -> Config:
    return _DEFAULTS.get(str(part.get("model_type")), {})


def _not_understood(config: Config) -> list[str]:
    """Lines on values that may be about scores or masks, in a way that is not known here."""
    changes = "if it changes scores or masks, other kernels are needed"
    return [
        f"not understood: {name}={value!r}; {changes}"
        for name, value in config.items()
        if _SOUNDS.search(name)
        and not _HARMLESS.fullmatch(name)
        and not name.startswith(_OF_OTHER_LAYERS)
        and not isinstance(value, dict)
        and value not in (None, False, 0, "", [])
    ]


def _refuse_unknown(config: Config) -> None:
    inner = config.get("attn_config")
    for name, what in _REFUSED.items():
        if value := config.get(name) or (isinstance(inner, dict) and inner.get(name)):
            raise expected(name, f"nothing, as no kernel that is chosen here has {what}", repr(value))
    if str(value := config.get("position_embedding_type")).startswith("relative"):
        raise expected("position_embedding_type", "one that adds nothing to scores, or alibi", repr(value))
    if config.get("is_encoder_decoder"):
        raise expected("is_encoder_decoder", "false: what attends to what is known of decoders only", "true")
    for name, value in config.items():
        known = name in _HEAD_DIMS or name.startswith(_OF_OTHER_LAYERS)
        if "head_dim" in name and value is not None and not known:
            raise expected(name, f"only head dims of known meaning ({', '.join(_HEAD_DIMS)})", repr(value))


def _number(config: Config, name: str) -> float:
    """A number above 0 that the configuration may give; 0 if it does not, or switches it off."""
    value = next((config[key] for key in (name, *_ALIASES.get(name, ())) if config.get(key) is not None), 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise expected(name, "a number, finite and not negative", repr(value))
    return value


def _size(config: Config, name: str) -> int:
    value = _number(config, name)
    if value != int(value):
        raise expected(name, "a whole number", repr(value))
    return int(value)


def _dtypes(config: Config) -> tuple[tuple[str, ...], str]:
    name = "dtype" if config.get("dtype") is not None else "torch_dtype"
    value = config.get(name)
    if value is None:
        return tuple(
            _DTYPES.values()
        ), f"dtype {' and '.join(_DTYPES.values())}: neither dtype nor torch_dtype is given"
    found = _DTYPES.get(str(value).removeprefix("torch."))
    if found is None:
        raise expected(name, f"{' or '.join(_DTYPES)}, in which it will run", repr(value))
    return (found,), f"dtype {found}: {name}"


def _head_dims(config: Config) -> tuple[tuple[int, int], str]:
    """(head_dim, head_dim_v) of the calls."""
    heads, heads_kv = _size(config, "num_attention_heads"), _size(config, "num_key_value_heads")
    if heads and heads_kv and heads % heads_kv:
        raise expected("num_attention_heads", f"a multiple of num_key_value_heads ({heads_kv})", heads)
    if config.get("kv_lora_rank") or config.get("qk_nope_head_dim"):
        nope, rope, dim_v = (_size(config, name) for name in _MLA)
        if not (nope and rope and dim_v):
            raise expected(", ".join(_MLA), "all three of MLA", (nope, rope, dim_v))
        dim = nope + rope
        why = "qk_nope_head_dim + qk_rope_head_dim, v_head_dim: MLA with keys written out; its absorbed form has none"
    else:
        dim, why = _size(config, "head_dim"), "head_dim"
        hidden = _size(config, "hidden_size")
        if not dim:
            if not heads or not hidden or hidden % heads:
                given = f"hidden_size {hidden or None}, num_attention_heads {heads or None}"
                raise expected("head_dim", "it, or a hidden_size that num_attention_heads divides", given)
            dim, why = hidden // heads, "hidden_size / num_attention_heads"
        dim_v = _size(config, "v_head_dim") or dim
    for name, columns in (("head_dim", dim), ("v_head_dim", dim_v)):
        if columns % _STEP:
            raise expected(name, f"a multiple of {_STEP}", columns)
    return (dim, dim_v), f"head_dim {dim}, of v {dim_v}, on kernels of {_kernels_of(dim, dim_v)}: {why}"


def _kernels_of(dim: int, dim_v: int) -> str:
    """The head dims of the prefill kernels that take such calls in 16 bits, by architecture where that matters."""
    found: dict[str, list[str]] = {}
    for arch in ARCHS:
        own = matrix.head_dims(arch, "prefill", "bf16", dim, dim_v)
        found.setdefault("none" if own is None else ", ".join(map(str, own)), []).append(arch)
    if len(found) == 1:
        return next(iter(found))
    return " or ".join(f"{dims} ({', '.join(archs)})" for dims, archs in found.items())


def _masks(config: Config) -> tuple[set[str], str]:
    found, why = _masks_of_layers(config)
    names = config.get("architectures") or ()
    if names and not any(str(name).endswith(_DECODERS) for name in names):
        found, why = found | {"full"}, f"{why}; full too, as architectures ({', '.join(map(str, names))}) may need it"
    if config.get("is_causal") is False:
        found, why = found | {"full"}, f"{why}; full too: is_causal is false"
    for name in ("use_bidirectional_attention", "cross_attention_layers"):
        if value := config.get(name):
            if value is not True and not isinstance(value, list):
                raise expected(name, "true, false or a list of layers", repr(value))
            found, why = found | {"full"}, f"{why}; full too: {name}"
    return found, f"mask {', '.join(sorted(found))}: {why}"


def _masks_of_layers(config: Config) -> tuple[set[str], str]:
    """Masks of the layers, as decoders have them."""
    is_off = config.get("use_sliding_window") is False
    widths = {mask: _size(config, name) for mask, name in _WIDTHS.items() if not (is_off and mask == "window")}
    layers = config.get("layer_types")
    if layers is None:
        given = [mask for mask, width in widths.items() if width]
        if not given:
            return {"causal"}, "no sliding_window is in use"
        names = ", ".join(_WIDTHS[mask] for mask in given)
        return {"causal", *given}, f"{names}; causal too, as no layer_types say that all layers have it"
    if not isinstance(layers, list) or not layers:
        raise expected("layer_types", "a list of names", repr(layers))
    kinds = [kind for kind in dict.fromkeys(map(str, layers)) if kind not in _WITHOUT_ATTENTION]
    for kind in kinds:
        if kind not in _MASKS:
            raise expected("layer_types", f"only {', '.join((*_MASKS, *_WITHOUT_ATTENTION))}", repr(kind))
        if _MASKS[kind] in _WIDTHS and not widths.get(_MASKS[kind]):
            raise expected(
                _WIDTHS[_MASKS[kind]], f"a number, as layer_types has {kind}", config.get(_WIDTHS[_MASKS[kind]])
            )
    if not kinds:
        raise expected("layer_types", "layers with attention", ", ".join(dict.fromkeys(map(str, layers))))
    return {_MASKS[kind] for kind in kinds}, f"layer_types has {', '.join(kinds)}"


def _has_alibi(config: Config) -> bool:
    of_attention = config.get("attn_config")
    inner = isinstance(of_attention, dict) and bool(of_attention.get("alibi"))
    by_name = config.get("position_embedding_type") == "alibi" or config.get("model_type") == "bloom"
    return bool(config.get("alibi")) or inner or by_name
