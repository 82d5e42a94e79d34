"""skimattn: attention kernels that skim. ``launch(Params(q, k, v))`` or ``attention(q, k, v)``; see README.md."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from .api import attention
from .call import Params
from .catalog import Explanation, explain, variants
from .errors import ArgumentError, BuildError, CudaError, NoKernelError
from .launcher import launch
from .stats import sparsity
from .thresholds import threshold_from_scale_factor
from .validate_options import pack_mask

try:
    __version__ = version("skimattn")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "unknown"

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
    "pack_mask",
    "sparsity",
    "threshold_from_scale_factor",
    "variants",
]
