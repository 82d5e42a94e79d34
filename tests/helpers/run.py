"""One way to run a case: on the emulator, on the reference, or on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import skimattn
import torch
from skimattn._select.dispatch import REFERENCE_VARIABLE
from skimattn.codegen.spec import KernelSpec
from skimattn.params import Params

from .build import Built, build
from .cases import HOPPER_8_BIT, Case, Content, contents
from .check import Result

OUTPUTS = ("out", "lse", "stats", "skip_map")
DEFAULT_SMS = 3  # of the emulated device: few, so that CTAs take several work items each


def params_of(built: Built) -> Params:
    """The call as a caller writes it."""
    arguments: dict[str, Any] = {"v": None, **built.tensors, **built.values}
    return Params(**arguments)


def run_case(
    case: Case, backend: str, held: list[Content] | None = None, **options: Any
) -> tuple[Result, list[Content]]:
    """Build and run a case; returns what it wrote and what its requests held."""
    held = contents(case) if held is None else held
    return run_built(build(case, held), backend, **options), held


def run_built(built: Built, backend: str, **options: Any) -> Result:
    """Run a call on ``emulator``, ``reference`` or ``gpu``; options go to that backend."""
    runners = {"emulator": run_on_emulator, "reference": run_on_reference, "gpu": run_on_gpu}
    return runners[backend](built, **options)


def result_of(built: Built, returned: object) -> Result:
    """Outputs by name, on the CPU: those that the call was given, and those that it returned."""
    tensors = {name: built.tensors[name] for name in OUTPUTS if name in built.tensors}
    if isinstance(returned, tuple):
        tensors["out"], tensors["lse"] = returned
    else:
        assert isinstance(returned, torch.Tensor)
        tensors["out"] = returned
    local = built.to("cpu") if built.tensors["q"].is_cuda else built
    moved = {name: local.tensors[name] if name in local.tensors else tensor.cpu() for name, tensor in tensors.items()}
    return Result(local, moved)


def run_on_reference(built: Built) -> Result:
    """Through ``launch`` on CPU tensors, as the kernels of the case's architecture would."""
    before = os.environ.get(REFERENCE_VARIABLE)
    os.environ[REFERENCE_VARIABLE] = built.case.arch
    try:
        return result_of(as_launched(built), skimattn.launch(params_of(built)))
    finally:
        if before is None:
            del os.environ[REFERENCE_VARIABLE]
        else:
            os.environ[REFERENCE_VARIABLE] = before


def run_on_gpu(built: Built, device: str = "cuda") -> Result:
    """Through ``launch`` on CUDA tensors."""
    there = built.to(device)
    torch.full((1 << 21,), -1, dtype=torch.int32, device=device)  # NaN in what a new output may be allocated from
    returned = skimattn.launch(params_of(there))
    torch.cuda.synchronize(device)
    launched = as_launched(there)
    if (launched.case.arch, launched.case.dtype) == ("sm90", "e4m3"):
        launched = replace(launched, case=replace(launched.case, sum_bits=HOPPER_8_BIT))
    return result_of(launched, returned)


def as_launched(built: Built) -> Built:
    """The call whose requests are in the phases that ``launch`` puts them in."""
    return replace(built, case=built.case.launched())


def run_on_emulator(
    built: Built,
    schedule: str = "late",
    seed: int = 0,
    sms: int = DEFAULT_SMS,
    heads_in_l2: int = 0,
    kernel: Any = None,
    compiled: Callable[[KernelSpec], Any] | None = None,
    strict_products: bool = False,
    part_leaves: int = 0,
    workspace: torch.Tensor | None = None,
) -> Result:
    """The rendered kernels on the CPU, with the launch plan that the runtime makes.

    Args:
        built: the call.
        schedule: when asynchronous work takes effect, see the emulator.
        seed: of the order in which threads take turns.
        sms: multiprocessors of the emulated device.
        heads_in_l2: replaces the plan's choice of how the work is ordered; 0 = leave it.
        kernel: replaces the compiled kernel of the case's spec.
        compiled: replaces the way to all of them.
        strict_products: whether products count as ordered only where the ISA says so; see the emulator.
        part_leaves: replaces the plan's choice of how many leaves a CTA computes; 0 = leave it.
        workspace: where partial results go, as it is; default: one of its own, full of NaN.
    """
    from skimattn._launch.planner import make_plan

    from tests.emulator import run_plan

    counter = torch.zeros(4, dtype=torch.int32)
    with _readable_values(built), _parts_of(part_leaves):
        problem, rows, buffers = _prepare(built, sms, workspace)
        plan = make_plan(problem, rows, buffers, sm_count=sms, work_counter_address=counter.data_ptr())
    owned = [
        *built.tensors.values(),
        counter,
        *(x for x in (buffers.out, buffers.lse, buffers.custom_mask, buffers.workspace) if x is not None),
    ]
    ranges = [(tensor.data_ptr(), extent(tensor)) for tensor in owned if tensor.numel()]
    options = {"schedule": schedule, "seed": seed, "ranges": ranges, "strict_products": strict_products}
    for launch in plan.kernels:
        spec = launch.kernel.spec
        if heads_in_l2:
            launch.scalars["heads_in_l2"] = heads_in_l2
        run_plan(kernel if kernel and spec == built.case.spec else (compiled or emulated)(spec), launch, **options)
        assert int(counter[0]) == 0, f"{built.case.name}: {spec.name} leaves the work counter at {int(counter[0])}"
    returned = (buffers.out, buffers.lse) if buffers.lse is not None and not built.case.give_out else buffers.out
    return result_of(built, returned)


def _prepare(built: Built, sms: int, workspace: torch.Tensor | None) -> tuple[Any, dict[str, Any], Any]:
    """The validated call, its kernels by phase, and its buffers."""
    from skimattn._call.validate import validate
    from skimattn._launch.buffers import make_buffers
    from skimattn._launch.planner import Planner
    from skimattn._select import kernels
    from skimattn._select.dispatch import specs_of
    from skimattn.codegen.matrix import combine_spec, transpose_spec

    case, problem = built.case, validate(params_of(built))
    specs = {case.spec.phase: case.spec}
    transpose = transpose_spec(case.spec)
    if transpose is not None and case.spec.phase == "prefill":
        specs["transpose"] = transpose
    if case.phase in ("decode", "mla"):
        specs = {"decode": case.spec, "combine": combine_spec(case.spec)}
    if case.phase == "mixed":
        specs = specs_of(problem, case.arch)
    rows = {phase: kernels.unbuilt_row(one) for phase, one in specs.items()}
    buffers = make_buffers(problem.params, problem.out_shape, Planner(rows, sms).workspace_floats(problem))
    for tensor, value in ((buffers.out, 0x7E5A), (buffers.lse, 0x7FC00BAD)):
        if tensor is not None and not case.give_out:
            _scribble(tensor, value)
    if buffers.workspace is not None:
        if workspace is not None:
            assert workspace.numel() >= buffers.workspace.numel()
            buffers.workspace = workspace
        else:
            _scribble(buffers.workspace, 0x7FC00BAD)
    return problem, rows, buffers


@contextmanager
def _parts_of(leaves: int) -> Iterator[None]:
    """Within, plans cut requests into parts of so many leaves; 0 = as they choose."""
    from skimattn._launch import decode

    chosen = decode.PART_LEAVES
    decode.PART_LEAVES = (leaves,) if leaves else chosen  # type: ignore[assignment]
    try:
        yield
    finally:
        decode.PART_LEAVES = chosen


def _scribble(tensor: torch.Tensor, value: int) -> None:
    """Fill fresh memory with a NaN, so that an element that is not written cannot pass for a result."""
    tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32).fill_(value)


@contextmanager
def _readable_values(built: Built) -> Iterator[None]:
    """Values in CPU tensors are read and checked; while a plan is made, hide what only a device may hold."""
    hidden = [built.tensors[name] for name in ("skip_softmax_threshold", "cu_seqlens_q") if name in built.tensors]
    if not built.case.device_only:
        hidden = []
    values = [tensor.clone() for tensor in hidden]
    for tensor in hidden:
        if tensor.is_floating_point():
            tensor.fill_(0.5)
        else:
            tensor[-1] += built.case.extra_rows
    yield
    for tensor, value in zip(hidden, values, strict=True):
        tensor.copy_(value)


def extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


@cache
def emulated(spec: KernelSpec) -> Any:
    """The compiled kernel, once per process."""
    from tests.emulator import compile_kernel

    return compile_kernel(spec)
