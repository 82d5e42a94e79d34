"""``launch``: validate a call once, choose its kernel once, and enqueue it as often as it comes."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.spec import KernelSpec

from ._call.form import check_form
from ._call.options import threshold_value
from ._call.outputs import check_skip_map
from ._call.problem import Form, Problem
from ._call.sizes import check_sizes
from ._call.validate import check_addresses, validate
from ._cuda import memory, streams
from ._cuda.device import Device, device
from ._launch import loader
from ._launch.buffers import Buffers, make_buffers
from ._launch.look import Elsewhere
from ._launch.plan import Planner
from ._launch.prepared import PreparedLaunches
from ._launch.shortcut import SERVED, Shortcut
from ._launch.signature import Bound, Scan, outline_of
from ._select.dispatch import arch_of, reference_arch, spec_of
from ._select.kernels import unbuilt_row
from .errors import expected
from .params import Params, forbid_changes, keep_prepared
from .reference import prefill as reference

LOGGER = logging.getLogger("skimattn")
MAX_FORMS = 1024  # forms kept; there are as many as a model has kinds of layers and phases
Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Chosen:
    """The device of a call, the kernel that computes it there, and what plans its launches."""

    gpu: Device
    spec: KernelSpec
    row: Kernel
    planner: Planner


@dataclass(frozen=True, eq=False)
class _Known:
    """A form that was checked, and its kernels by (head_dim, head_dim_v)."""

    form: Form
    kernels: dict[tuple[int, int], _Chosen]


_forms: dict[Hashable, _Known] = {}
_prepared = PreparedLaunches()


def launch(params: Params, stream: Any = None) -> Result:
    """:func:`skimattn.launch` where nothing traces the call."""
    if isinstance(params, Params):
        bound = params._prepared
        if bound is not None:
            assert isinstance(bound, Bound)
            if bound.holds():
                return _enqueue(bound, params, stream)
        if isinstance(params.q, torch.Tensor) and params.q.is_cuda:
            return _first_launch(params, stream)
    return _without_gpu(validate(params), stream)


def _enqueue(bound: Bound, params: Params, stream: Any) -> Result:
    """Allocate what is missing, on the stream that writes it, and launch."""
    prepared = bound.prepared
    if stream is None and prepared.only_out:  # the common case, without what it does not need
        if prepared.plain:
            out = memory.empty(prepared.out_shape, prepared.out_strides, prepared.out_dtype, prepared.ordinal)
        else:
            out = params.q.new_empty(prepared.out_shape, dtype=prepared.out_dtype)
        handle = streams.current(prepared.ordinal)
        if prepared.launch(bound.token, bound.addresses, (out.data_ptr(),), bound.threshold, handle):
            return out
    else:
        handle, buffers = _buffers(params, prepared.out_shape, prepared.ordinal, stream)
        if prepared.launch(bound.token, bound.addresses, buffers.addresses(params), bound.threshold, handle):
            return _result(params, buffers)
    return _first_launch(params, stream)  # what was prepared has been given to another signature


def _buffers(params: Params, out_shape: tuple[int, ...], ordinal: int, stream: Any) -> tuple[int, Buffers]:
    """The stream's handle, and what the caller did not give, allocated on that stream."""
    if stream is None:
        return streams.current(ordinal), make_buffers(params, out_shape)
    handle = streams.handle_of(stream, ordinal)
    with streams.allocating_on(handle, params.q.device):
        return handle, make_buffers(params, out_shape)


def _result(params: Params, buffers: Buffers) -> Result:
    if not params.return_lse:
        return buffers.out
    assert buffers.lse is not None
    return buffers.out, buffers.lse


def _first_launch(params: Params, stream: Any) -> Result:
    """Launch a GPU call object that was not launched before, or whose tensors changed."""
    try:
        outline, tensors = outline_of(params)
        if outline.shortcut is not None and stream is None and type(params) is Params:  # a new object
            try:
                out = outline.shortcut.launch(params, tensors)
            except Elsewhere:
                pass
            else:
                forbid_changes(params)
                return out
        scan = Scan(params, outline, tensors)
        known = _forms.get(scan.form)
    except (AttributeError, TypeError, RuntimeError):  # not a (dense) tensor, or a value that cannot be hashed
        validate(params)  # says what is wrong
        raise
    if scan.needs_gradient():
        validate(params)
    if known is None:
        known = _Known(check_form(params), {})
    found = _prepared.find((known, scan.sizes))
    if found is None:
        return _new_launch(params, scan, known, stream)
    prepared, token = found
    threshold = threshold_value(params)
    if not prepared.accepts(scan.addresses):
        check_addresses(params)  # says what is wrong
    bound = Bound(scan, prepared, token, threshold)
    result = _enqueue(bound, params, stream)
    if forbid_changes(params):  # most calls are launched once, and need not be bound for another time
        keep_prepared(params, bound)
    return result


def _new_launch(params: Params, scan: Scan, known: _Known, stream: Any) -> Result:
    """Launch a call whose sizes are not known, though its form may be."""
    problem = check_sizes(known.form, params)
    kernel = known.kernels.get((problem.head_dim, problem.head_dim_v)) or _choose(problem, known)
    check_skip_map(problem, kernel.row)
    if problem.empty or 0 in scan.addresses:
        check_addresses(params)
    handle, buffers = _buffers(params, problem.out_shape, kernel.gpu.ordinal, stream)
    if problem.empty:
        forbid_changes(params)
        return _result(params, buffers)
    loaded = loader.load(kernel.gpu, kernel.spec)
    prepared = _prepared.take()
    token = prepared.fill(scan.outline.names, problem, buffers, kernel.planner, kernel.gpu, loaded)
    if not prepared.accepts(scan.addresses):
        check_addresses(params)  # says what is wrong
    _keep_form(scan, known)
    _prepared.keep((known, scan.sizes), prepared, token)
    forbid_changes(params)
    if SERVED.issuperset(scan.outline.names) and not params.return_lse:
        scan.outline.shortcut = Shortcut(scan.outline.names, problem, buffers, kernel.planner, kernel.gpu, loaded)
    if not prepared.launch(token, scan.addresses, buffers.addresses(params), problem.threshold, handle):
        return _first_launch(params, stream)
    return _result(params, buffers)


def _choose(problem: Problem, known: _Known) -> _Chosen:
    """The kernel that computes the call; nothing is loaded or compiled yet."""
    ordinal = problem.device.index
    assert ordinal is not None  # a tensor's device has an index
    gpu = device(ordinal)
    spec = spec_of(problem, arch_of(gpu.capability))
    row = unbuilt_row(spec)
    chosen = known.kernels[problem.head_dim, problem.head_dim_v] = _Chosen(gpu, spec, row, Planner(row, gpu.sm_count))
    LOGGER.debug("%s computes calls like q %s", spec.name, list(problem.params.q.shape))
    return chosen


def _keep_form(scan: Scan, known: _Known) -> None:
    if scan.form not in _forms:
        if len(_forms) >= MAX_FORMS:
            _forms.clear()
        _forms[scan.form] = known


def _without_gpu(problem: Problem, stream: Any) -> Result:
    if stream is not None:
        raise expected("stream", "None with CPU tensors", repr(stream))
    kernel = unbuilt_row(spec_of(problem, reference_arch(problem.dtype)))
    check_skip_map(problem, kernel)
    buffers = make_buffers(problem.params, problem.out_shape)
    forbid_changes(problem.params)
    if not problem.empty:
        reference.attention(problem, kernel, buffers)
    return _result(problem.params, buffers)
