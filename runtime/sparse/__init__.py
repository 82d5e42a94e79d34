"""What a model skips, and where: configurations, calibration, statistics.

Public names are imported on first use, since configurations need pydantic, which calls do without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config.config import SkipSoftmaxConfig
    from .config.kernels import Kernels
    from .config.settings import Fit, Setting
    from .methods import register_method
    from .policy import LayerPolicy, PhaseRule, attach_policy, policy_of
    from .stats import sparsity
    from .thresholds import threshold_from_scale_factor
    from .warning import SparseWarning

_HOMES = {
    "Fit": "config.settings",
    "Kernels": "config.kernels",
    "LayerPolicy": "policy",
    "PhaseRule": "policy",
    "Setting": "config.settings",
    "SkipSoftmaxConfig": "config.config",
    "SparseWarning": "warning",
    "attach_policy": "policy",
    "policy_of": "policy",
    "register_method": "methods",
    "sparsity": "stats",
    "threshold_from_scale_factor": "thresholds",
}

__all__ = [
    "Fit",
    "Kernels",
    "LayerPolicy",
    "PhaseRule",
    "Setting",
    "SkipSoftmaxConfig",
    "SparseWarning",
    "attach_policy",
    "policy_of",
    "register_method",
    "sparsity",
    "threshold_from_scale_factor",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_HOMES[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name != "pydantic":
            raise
        raise ModuleNotFoundError(
            f"{name} needs pydantic: pip install 'skimattn[calibrate]'", name="pydantic"
        ) from error
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
