"""``launch``: validate a call once, choose its kernel once, and enqueue it as often as it comes."""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch

from . import reference, streams
from .buffers import make_buffers
from .call import Params, Problem
from .device import device
from .dispatch import CPU_ARCH, arch_of, spec_of
from .errors import expected
from .kernels import describe
from .plan import Buffers
from .prepared import Prepared
from .validate import check_addresses, validate
from .validate_outputs import INPUTS, OUTPUTS, check_skip_map_tiles

LOGGER = logging.getLogger("skimattn")
MAX_KINDS = 4096  # prepared launches kept (about 3 KB each); the oldest goes first
Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

_TENSORS = INPUTS + OUTPUTS
_PACKED_LATER = "custom_mask"
_OPTIONAL_TENSORS = tuple(name for name in _TENSORS if name not in ("q", "k", "v"))
_kinds: dict[tuple[Any, ...], Prepared] = {}
_kinds_lock = threading.Lock()


def launch(params: Params, stream: Any = None) -> Result:
    """Compute attention; asynchronous on a GPU, with the block-exact reference on CPU tensors.

    Args:
        params: the call; launching the same object again skips validation while its tensors stay where they are.
        stream: where to enqueue: None = torch's current stream of q's device, or a stream, or its handle as an int.

    Returns:
        ``out``, or ``(out, lse)`` with ``return_lse=True``.

    Raises:
        ArgumentError: an argument is not acceptable.
        NoKernelError: no kernel computes this, here.
        BuildError: the kernel had to be compiled and could not be, or its files are damaged.
        CudaError: the driver refused.
    """
    bound = params._prepared if isinstance(params, Params) else None
    if not isinstance(bound, Bound) or not bound.holds():
        if not isinstance(params, Params) or not isinstance(params.q, torch.Tensor) or params.q.device.type != "cuda":
            return _without_gpu(validate(params), stream)
        found = _bind(params)
        if found is None:
            return _result(params, make_buffers(params, (*params.q.shape[:-1], params.v.shape[-1])))
        object.__setattr__(params, "_prepared", found)
        bound = found
    return bound.launch(params, stream)


class Bound:
    """A call object tied to a prepared launch: where its tensors were and how they looked when it was validated."""

    __slots__ = ("_addresses", "_forms", "_prepared", "_tensors")

    def __init__(self, params: Params, prepared: Prepared) -> None:
        """Holds the tensors of ``params``, not ``params`` itself, which holds this."""
        named = {name: getattr(params, name) for name in _TENSORS if isinstance(getattr(params, name), torch.Tensor)}
        self._prepared = prepared
        self._tensors = tuple(named.values())
        self._forms = tuple((tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in self._tensors)
        self._addresses = {name: tensor.data_ptr() for name, tensor in named.items()}

    def holds(self) -> bool:
        """Whether no tensor was moved, resized or made to require a gradient since."""
        for tensor, form in zip(self._tensors, self._forms, strict=True):
            if (tensor.data_ptr(), tensor.shape, tensor.stride()) != form:
                return False
        return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tensors))

    def launch(self, params: Params, stream: Any) -> Result:
        """Allocate what is missing and enqueue."""
        prepared = self._prepared
        if stream is None:
            handle = streams.current(prepared.device.ordinal)
            buffers = make_buffers(params, prepared.out_shape)
        else:
            handle = streams.handle_of(stream, prepared.device.ordinal)
            with streams.allocating_on(handle, params.q.device):
                buffers = make_buffers(params, prepared.out_shape)
        addresses = self._addresses
        if params.out is None or buffers.lse is not params.lse or buffers.custom_mask is not params.custom_mask:
            addresses = {**addresses, **_addresses(buffers)}
        prepared.launch(addresses, handle)
        return _result(params, buffers)


def _addresses(buffers: Buffers) -> dict[str, int]:
    given = {"out": buffers.out, "lse": buffers.lse, _PACKED_LATER: buffers.custom_mask}
    return {name: tensor.data_ptr() for name, tensor in given.items() if tensor is not None}


def _result(params: Params, buffers: Buffers) -> Result:
    if not params.return_lse:
        return buffers.out
    assert buffers.lse is not None
    return buffers.out, buffers.lse


def _kind(params: Params) -> tuple[Any, ...]:
    """Everything that validation, dispatch and the plan look at, except addresses and device values."""
    q, k, v = params.q, params.k, params.v
    key: list[Any] = [q.dtype, q.device, k.dtype, k.device, v.dtype, v.device]
    key += [q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride()]
    key += [params.kv_layout, params.max_seqlen_q, params.max_seqlen_k, params.mask, params.window_size]
    key += [params.chunk_size, params.softmax_scale, params.softcap, params.return_lse]
    for name in _OPTIONAL_TENSORS:
        value = getattr(params, name)
        key.append(
            (value.dtype, value.device, value.shape, value.stride()) if isinstance(value, torch.Tensor) else value
        )
    return tuple(key)


def _bind(params: Params) -> Bound | None:
    """Find or make the prepared launch of a GPU call; None if there is no row to write."""
    try:
        kind = _kind(params)
        prepared = _kinds.get(kind)
    except (AttributeError, TypeError):  # not tensors, or values that cannot be hashed: validation says what is wrong
        kind, prepared = (), None
    if prepared is None or _needs_gradient(params):
        problem = validate(params)
        spec = spec_of(problem, arch_of(device(_ordinal(problem)).capability))
        check_skip_map_tiles(problem, describe(spec).tile_n)
        if problem.empty:
            return None
        prepared = _prepare(problem, kind)
    else:
        check_addresses(params)
    return Bound(params, prepared)


def _needs_gradient(params: Params) -> bool:
    values = (getattr(params, name) for name in _TENSORS)
    return torch.is_grad_enabled() and any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)


def _ordinal(problem: Problem) -> int:
    assert problem.device.index is not None  # a tensor's device has an index
    return problem.device.index


def _prepare(problem: Problem, kind: tuple[Any, ...]) -> Prepared:
    gpu = device(_ordinal(problem))
    loaded = gpu.kernel(spec_of(problem, arch_of(gpu.capability)))
    prepared = Prepared(problem, make_buffers(problem.params, problem.out_shape), gpu, loaded)
    LOGGER.debug("prepared %s for q %s, k %s", loaded.kernel.name, *(list(t.shape) for t in _qk(problem)))
    with _kinds_lock:
        if len(_kinds) >= MAX_KINDS:
            del _kinds[next(iter(_kinds))]
        if kind:
            _kinds[kind] = prepared
    return prepared


def _qk(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    return problem.params.q, problem.params.k


def _without_gpu(problem: Problem, stream: Any) -> Result:
    if stream is not None:
        raise expected("stream", "None with CPU tensors", repr(stream))
    kernel = describe(spec_of(problem, CPU_ARCH))
    check_skip_map_tiles(problem, kernel.tile_n)
    buffers = make_buffers(problem.params, problem.out_shape)
    if not problem.empty:
        reference.attention(problem, kernel, buffers)
    return _result(problem.params, buffers)
