"""skimattn: attention kernels that skim. ``launch(Params(q, k, v))`` or ``attention(q, k, v)``; see README.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._call.masks import pack_mask
    from ._select.catalog import Explanation, explain, variants
    from .api import attention, launch, merge_states
    from .errors import ArgumentError, BuildError, CudaError, NoKernelError
    from .params import Params
    from .sparse.stats import sparsity
    from .sparse.thresholds import threshold_from_scale_factor

    __version__: str

# Where each public name lives. They are imported on first use: the build imports skimattn.codegen, once in every
# compiler process, and must not pay seconds for torch.
_HOMES = {
    "ArgumentError": "errors",
    "BuildError": "errors",
    "CudaError": "errors",
    "Explanation": "_select.catalog",
    "NoKernelError": "errors",
    "Params": "params",
    "attention": "api",
    "explain": "_select.catalog",
    "launch": "api",
    "merge_states": "api",
    "pack_mask": "_call.masks",
    "sparsity": "sparse.stats",
    "threshold_from_scale_factor": "sparse.thresholds",
    "variants": "_select.catalog",
}

__all__ = [
    "ArgumentError",
    "BuildError",
    "CudaError",
    "Explanation",
    "NoKernelError",
    "Params",
    "__version__",
    "attention",
    "explain",
    "launch",
    "merge_states",
    "pack_mask",
    "sparsity",
    "threshold_from_scale_factor",
    "variants",
]


def __getattr__(name: str) -> object:
    """Import a public name, or read the installed version, when it is first asked for."""
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("skimattn")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"
