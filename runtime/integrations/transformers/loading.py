"""Loads a language model of transformers, with its tokenizer, so that its attention is ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ...errors import expected
from ._linear import quicken
from ._register import NAME, register

DTYPES = ("bfloat16", "float16")  # that kernels take
_GGUF = ".gguf"


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its tokenizer, and the name that it was asked for by."""

    name: str
    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special ones."""
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False).input_ids]

    @property
    def beginning(self) -> list[int]:
        """What the tokenizer puts before a text: a token that says so, or nothing."""
        first = self.tokenizer("").input_ids[:1]
        return [int(token) for token in first if token == self.tokenizer.bos_token_id]


def load(
    name: str | Path, *, dtype: str = "bfloat16", device: str | torch.device = "cpu", trust_remote_code: bool = False
) -> Loaded:
    """Load a model for ``attn_implementation="skimattn"``, which this registers.

    Args:
        name: a folder as ``save_pretrained`` leaves it; a folder with one ``.gguf`` file, or that file; else a name
            that transformers finds in its cache or on the hub.
        dtype: of the weights, one of :data:`DTYPES`.
        device: where they are to lie. On a CPU linear layers compute in float32 (:func:`quicken`).
        trust_remote_code: as transformers takes it.

    Raises:
        ArgumentError: the dtype is another, or a folder holds no model.
        OSError: transformers finds no such model.
    """
    if dtype not in DTYPES:
        raise expected("dtype", " or ".join(DTYPES), dtype)
    register()
    model, tokenizer = read(name, getattr(torch, dtype), attn_implementation=NAME, trust_remote_code=trust_remote_code)
    model = model.to(device).eval()
    quicken(model)
    return Loaded(str(name), model, tokenizer)


def read(
    name: str | Path, dtype: torch.dtype, *, attn_implementation: str | None = None, trust_remote_code: bool = False
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A model as transformers loads it, on the CPU, and its tokenizer.

    Args:
        name: as :func:`load` takes it.
        dtype: of the weights.
        attn_implementation: None: what transformers chooses.
        trust_remote_code: as transformers takes it.

    Raises:
        ArgumentError: a folder holds no model.
        OSError: transformers finds no such model.
    """
    folder, arguments = _place(name)
    common: dict[str, Any] = {**arguments, "trust_remote_code": trust_remote_code}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **common)
    if arguments and int(transformers.__version__.split(".")[0]) >= 5:
        common["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, **common
    )
    return model, tokenizer


def _place(name: str | Path) -> tuple[str, dict[str, str]]:
    """What transformers calls it, and what else it has to be told."""
    path = Path(name)
    if path.is_file() and path.suffix == _GGUF:
        return str(path.parent), {"gguf_file": path.name}
    if not path.is_dir():
        if path.exists() or str(name).startswith((".", "/", "~")):
            raise expected("model", f"a folder, a {_GGUF} file or a name of the hub", str(name))
        return str(name), {}
    if (path / "config.json").exists():
        return str(path), {}
    files = sorted(file.name for file in path.glob(f"*{_GGUF}"))
    if len(files) != 1:
        wanted = f"a folder with a config.json or one {_GGUF} file"
        raise expected("model", wanted, f"{path} with {', '.join(files) or 'neither'}")
    return str(path), {"gguf_file": files[0]}
