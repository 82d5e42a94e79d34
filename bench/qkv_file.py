"""Files of q, k and v that a model's attention was given: ``bench dump`` writes them, ``bench skip`` reads them.

``.safetensors``, or ``.pt`` where the package safetensors is not installed. Of each layer there are ``N.q`` [S, Hq, D],
``N.k`` and ``N.v`` [S, Hkv, D]: a causal prefill of one request, with or without a window, scores scaled by D ** -0.5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .inputs import TORCH_DTYPES

FORMAT = 1
SUFFIXES = (".safetensors", ".pt")
_KEY = "skimattn"  # of the metadata
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """What layers have to share to be measured together.

    Args:
        rows: and keys.
        heads_q: of q.
        heads_kv: of k and v.
        head_dim: of all three.
        dtype: ``bf16`` or ``fp16``.
        window: keys that a row sees, its own included; 0: all up to its own.
    """

    rows: int
    heads_q: int
    heads_kv: int
    head_dim: int
    dtype: str
    window: int


@dataclass(frozen=True)
class Layers:
    """The layers of a file that are of one kind, by their numbers."""

    path: Path
    model: str
    kind: Kind
    numbers: tuple[int, ...]

    def read(self, number: int, device: str) -> Tensors:
        """q [S, Hq, D], k and v [S, Hkv, D] of a layer."""
        _, tensor_of = _open(self.path)
        # Copied on the CPU too: in the file they do not lie at multiples of 16 bytes.
        q, k, v = (tensor_of(f"{number}.{name}").to(device, copy=True) for name in "qkv")
        return q, k, v


def kind_of(tensors: Tensors, window: int) -> Kind:
    """The kind of a layer; ``ValueError`` if q, k and v do not belong together."""
    q, k, v = tensors
    (rows, heads_q, dim), (keys, heads_kv, _) = q.shape, k.shape
    if k.shape != v.shape or k.shape != (rows, heads_kv, dim) or keys != rows:
        raise ValueError(f"v: expected k and v of {rows} keys and {dim} columns (got {[*k.shape]} and {[*v.shape]})")
    names = [name for name, dtype in TORCH_DTYPES.items() if q.dtype == k.dtype == v.dtype == dtype]
    if names not in (["bf16"], ["fp16"]):
        raise ValueError(f"dtype: expected bf16 or fp16 of q, k and v (got {q.dtype}, {k.dtype}, {v.dtype})")
    return Kind(rows, heads_q, heads_kv, dim, names[0], window if window < rows else 0)


def write(path: Path, layers: Mapping[int, Tensors], windows: Mapping[int, int], model: str, text: str) -> None:
    """Write a file.

    Args:
        path: ends in ``.safetensors`` or ``.pt``.
        layers: by number.
        windows: of the layers that have one.
        model: its name.
        text: where its input came from.
    """
    kinds = {str(number): asdict(kind_of(item, windows.get(number, 0))) for number, item in layers.items()}
    about = json.dumps({"format": FORMAT, "model": model, "text": text, "layers": kinds})
    named = {f"{n}.{x}": tensor.cpu() for n, item in layers.items() for x, tensor in zip("qkv", item, strict=True)}
    if suffix_of(path) == ".pt":
        torch.save({_KEY: about, **named}, path)
    else:
        _safetensors("safetensors.torch").save_file(named, path, {_KEY: about})


def layers_of(path: Path) -> list[Layers]:
    """The layers of a file, those of each kind together; ``ValueError`` or ``OSError`` if it is not one."""
    about, _ = _open(path)
    kinds: dict[Kind, list[int]] = {}
    for number, fields in about["layers"].items():
        kinds.setdefault(Kind(**fields), []).append(int(number))
    return [Layers(path, about["model"], kind, (*sorted(numbers),)) for kind, numbers in kinds.items()]


def _open(path: Path) -> tuple[dict[str, Any], Callable[[str], torch.Tensor]]:
    """What is said of the layers, and what reads a tensor."""
    suffix = suffix_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file that bench dump wrote (there is none)")
    if suffix == ".pt":
        held = torch.load(path, mmap=True, weights_only=True)
        text, tensor_of = held.get(_KEY) if isinstance(held, dict) else None, lambda name: held[name]
    else:
        file = _safetensors("safetensors").safe_open(path, "pt")
        text, tensor_of = (file.metadata() or {}).get(_KEY), file.get_tensor
    about = json.loads(text or "{}")
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a file of bench dump, format {FORMAT} (got {about.get('format')})")
    return about, tensor_of


def suffix_of(path: Path) -> str:
    """``ValueError`` if the name does not end in one of :data:`SUFFIXES`."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)} (got {path.suffix!r})")
    return path.suffix


def _safetensors(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name}: expected to be installed for .safetensors (pip install safetensors)"
        ) from error
