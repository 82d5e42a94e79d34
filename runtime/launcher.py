"""``launch``: validate a call once, choose its kernel once, and enqueue it as often as it comes."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
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
from ._launch.plan import numbers_of
from ._launch.planner import Planner
from ._launch.prepared import PreparedLaunches
from ._launch.shortcut import SERVED, Shortcut
from ._launch.signature import Bound, Scan, outline_of
from ._select.dispatch import arch_of, phase_rule, phases_of, reference_arch, specs_of
from ._select.kernels import unbuilt_row
from .errors import expected
from .params import Params, forbid_changes, keep_prepared
from .reference import attention as reference

LOGGER = logging.getLogger("skimattn")
MAX_FORMS = 1024  # forms kept; there are as many as a model has kinds of layers and phases
Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Chosen:
    """The device of a call, the kernels that compute it there by phase, and what plans its launches."""

    gpu: Device
    specs: Mapping[str, KernelSpec]
    planner: Planner


@dataclass(frozen=True, eq=False)
class _Known:
    """A form that was checked, and its kernels by head_dim, head_dim_v and the phases that requests may be in."""

    form: Form
    kernels: dict[tuple[int, int, tuple[str, ...]], _Chosen]


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
    makes, only_out = prepared.making
    if stream is None and makes is not None:  # the common case, without what it does not need
        if only_out:
            out = memory.empty(*makes[0])
            made = [out.data_ptr()]
            if len(makes) > 1:
                workspace = memory.empty(*makes[1])
                made.append(workspace.data_ptr())
        else:
            new = [memory.empty(*each) for each in makes]
            made = [tensor.data_ptr() for tensor in new]
        handle = streams.current(prepared.ordinal)
        if prepared.launch(bound.token, bound.addresses, made, bound.threshold, handle):
            return out if only_out else _given_or(new, params)
    else:
        handle, buffers = _buffers(params, prepared.out_shape, prepared.workspace_floats, prepared.ordinal, stream)
        if prepared.launch(bound.token, bound.addresses, buffers.addresses(params), bound.threshold, handle):
            return _result(params, buffers)
    return _first_launch(params, stream)  # what was prepared has been given to another signature


def _buffers(
    params: Params, out_shape: tuple[int, ...], workspace_floats: int, ordinal: int, stream: Any
) -> tuple[int, Buffers]:
    """The stream's handle, and what the caller did not give, allocated on that stream."""
    if stream is None:
        return streams.current(ordinal), make_buffers(params, out_shape, workspace_floats)
    handle = streams.handle_of(stream, ordinal)
    with streams.allocating_on(handle, params.q.device):
        return handle, make_buffers(params, out_shape, workspace_floats)


def _given_or(new: list[torch.Tensor], params: Params) -> Result:
    """What a launch returns that made some of ``out`` and ``lse``, in this order."""
    out = new.pop(0) if params.out is None else params.out
    if not params.return_lse:
        return out
    return out, new[0] if params.lse is None else params.lse


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
    chosen = _choose(problem, known)
    planner = chosen.planner
    check_skip_map(problem, planner.rows.get("prefill"), planner.rows.get("decode"))
    if problem.empty or 0 in scan.addresses:
        check_addresses(params)
    floats = 0 if problem.empty else planner.workspace_floats(problem)
    handle, buffers = _buffers(params, problem.out_shape, floats, chosen.gpu.ordinal, stream)
    if problem.empty:
        forbid_changes(params)
        return _result(params, buffers)
    loaded = {phase: loader.load(chosen.gpu, spec) for phase, spec in chosen.specs.items()}
    prepared = _prepared.take()
    token = prepared.fill(scan.outline.names, problem, buffers, planner, chosen.gpu, loaded)
    if not prepared.accepts(scan.addresses):
        check_addresses(params)  # says what is wrong
    _keep_form(scan, known)
    _prepared.keep((known, scan.sizes), prepared, token)
    forbid_changes(params)
    if SERVED.issuperset(scan.outline.names) and not problem.latent and "transpose" not in loaded:
        _keep_shortcut(scan, problem, buffers, chosen, loaded)
    if not prepared.launch(token, scan.addresses, buffers.addresses(params), problem.threshold, handle):
        return _first_launch(params, stream)
    return _result(params, buffers)


def _keep_shortcut(
    scan: Scan, problem: Problem, buffers: Buffers, chosen: _Chosen, loaded: Mapping[str, loader.Loaded]
) -> None:
    """Let new calls of this form that the same kernels compute be launched the short way."""
    form, shortcut = (scan.form, numbers_of(problem)), scan.outline.shortcut
    if shortcut is None or shortcut.form != form:
        phases = phase_rule(problem, arch_of(chosen.gpu.capability))
        shortcut = Shortcut(form, scan.outline.names, problem, buffers, chosen.gpu, phases)
    shortcut.add(problem, buffers, chosen.planner, loaded)
    scan.outline.shortcut = shortcut


def _choose(problem: Problem, known: _Known) -> _Chosen:
    """The kernels that compute the call; nothing is loaded or compiled yet."""
    ordinal = problem.device.index
    assert ordinal is not None  # a tensor's device has an index
    gpu = device(ordinal)
    arch = arch_of(gpu.capability)
    key = problem.head_dim, problem.head_dim_v, phases_of(problem, arch)
    chosen = known.kernels.get(key)
    if chosen is None:
        specs = specs_of(problem, arch)
        rows = {phase: unbuilt_row(spec) for phase, spec in specs.items()}
        chosen = known.kernels[key] = _Chosen(gpu, specs, Planner(rows, gpu.sm_count))
        names = ", ".join(spec.name for spec in specs.values())
        LOGGER.debug("%s computes calls like q %s", names, list(problem.params.q.shape))
    return chosen


def _keep_form(scan: Scan, known: _Known) -> None:
    if scan.form not in _forms:
        if len(_forms) >= MAX_FORMS:
            _forms.clear()
        _forms[scan.form] = known


def _without_gpu(problem: Problem, stream: Any) -> Result:
    if stream is not None:
        raise expected("stream", "None with CPU tensors", repr(stream))
    specs = specs_of(problem, reference_arch())
    rows = {phase: unbuilt_row(spec) for phase, spec in specs.items()}
    prefill, decode = rows.get("prefill"), rows.get("decode")
    check_skip_map(problem, prefill, decode)
    buffers = make_buffers(problem.params, problem.out_shape)
    forbid_changes(problem.params)
    if not problem.empty:
        reference.attention(problem, reference.Kernels(prefill, decode), buffers)
    return _result(problem.params, buffers)
