"""What a model skips, and where: configurations, calibration, statistics.

Public names are imported on first use, since configurations need pydantic, which calls do without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..reference.dropped import dropped_mass
    from .calibration.calibrate import Quality, calibrate
    from .calibration.data import retrieval, text_windows, windows
    from .calibration.fit import fit_shares
    from .calibration.point import Point
    from .calibration.result import Calibration
    from .calibration.runner import ModelRunner, Outcome, Run, Runner
    from .config.config import SkipSoftmaxConfig
    from .config.fit import Curve, Fit
    from .config.kernels import Kernels
    from .config.settings import Setting
    from .counts import TileCounts
    from .methods import register_method
    from .model import (
        config_of,
        disable,
        enable,
        export_config,
        from_pretrained,
        restore,
        save_pretrained,
        set_step,
        sparsify,
    )
    from .modules import attention_modules
    from .policy import LayerPolicy, PhaseRule, attach_policy, policy_of
    from .report import summary
    from .statlog.log import StatLog
    from .statlog.read import Statistics, read_statistics
    from .stats import dropped_from_lse, sparsity
    from .thresholds import threshold_from_scale_factor
    from .warning import SparseWarning

_HOMES = {
    "Calibration": "calibration.result",
    "Curve": "config.fit",
    "Fit": "config.fit",
    "Kernels": "config.kernels",
    "LayerPolicy": "policy",
    "ModelRunner": "calibration.runner",
    "Outcome": "calibration.runner",
    "PhaseRule": "policy",
    "Point": "calibration.point",
    "Quality": "calibration.calibrate",
    "Run": "calibration.runner",
    "Runner": "calibration.runner",
    "Setting": "config.settings",
    "SkipSoftmaxConfig": "config.config",
    "SparseWarning": "warning",
    "StatLog": "statlog.log",
    "Statistics": "statlog.read",
    "TileCounts": "counts",
    "attach_policy": "policy",
    "attention_modules": "modules",
    "calibrate": "calibration.calibrate",
    "config_of": "model",
    "disable": "model",
    "dropped_from_lse": "stats",
    "dropped_mass": ".reference.dropped",  # of the package above
    "enable": "model",
    "export_config": "model",
    "fit_shares": "calibration.fit",
    "from_pretrained": "model",
    "policy_of": "policy",
    "read_statistics": "statlog.read",
    "register_method": "methods",
    "restore": "model",
    "retrieval": "calibration.data",
    "save_pretrained": "model",
    "set_step": "model",
    "sparsify": "model",
    "sparsity": "stats",
    "summary": "report",
    "text_windows": "calibration.data",
    "threshold_from_scale_factor": "thresholds",
    "windows": "calibration.data",
}

__all__ = [
    "Calibration",
    "Curve",
    "Fit",
    "Kernels",
    "LayerPolicy",
    "ModelRunner",
    "Outcome",
    "PhaseRule",
    "Point",
    "Quality",
    "Run",
    "Runner",
    "Setting",
    "SkipSoftmaxConfig",
    "SparseWarning",
    "StatLog",
    "Statistics",
    "TileCounts",
    "attach_policy",
    "attention_modules",
    "calibrate",
    "config_of",
    "disable",
    "dropped_from_lse",
    "dropped_mass",
    "enable",
    "export_config",
    "fit_shares",
    "from_pretrained",
    "policy_of",
    "read_statistics",
    "register_method",
    "restore",
    "retrieval",
    "save_pretrained",
    "set_step",
    "sparsify",
    "sparsity",
    "summary",
    "text_windows",
    "threshold_from_scale_factor",
    "windows",
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
