"""Runs the CUDA kernels on the CPU: the same rendered source, compiled against an emulator of the ``ptx::`` seam.

>>> kernel = compile_kernel(spec)
>>> run_plan(kernel, plan, schedule="late")
"""

from .build import EmulatorBuildError, HeaderPatch, compile_kernel, compile_source
from .run import SCHEDULES, EmulatedKernel, EmulatorError, Range, encode_map, run_plan

__all__ = [
    "SCHEDULES",
    "EmulatedKernel",
    "EmulatorBuildError",
    "EmulatorError",
    "HeaderPatch",
    "Range",
    "compile_kernel",
    "compile_source",
    "encode_map",
    "run_plan",
]
