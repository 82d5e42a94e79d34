"""Prepared launches: the parameter block and launch configuration of one kind of call, patched for every launch.

Host time is spent once per kind of call (shapes, strides, dtypes, options). A launch then compares a few addresses,
rewrites what moved, and calls the driver.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from typing import Any

import torch
from skimattn.codegen.params import OFFSETS, aligned_block

from .._call.checks import span_bytes
from .._call.dtypes import default_out_dtype
from .._call.options import multiple_of
from .._call.outputs import OUTPUTS
from .._call.problem import Problem
from .._cuda import driver, streams
from .._cuda.device import Device
from . import tensormap
from .buffers import Buffers
from .loader import Loaded
from .plan import BLOCK_TENSORS, MAP_TENSORS, argument, make_plan

_LEGACY_ID = -1  # of the default stream, which cannot be captured and has no other handle
_FIELDS_OF: dict[str, tuple[list[str], list[str]]] = {}  # argument -> (tensor maps, pointers) that hold its address
for _field, _name in MAP_TENSORS.items():
    _FIELDS_OF.setdefault(_name, ([], []))[0].append(_field)
for _field, _name in BLOCK_TENSORS.items():
    _FIELDS_OF.setdefault(_name, ([], []))[1].append(_field)


class Prepared:
    """One kind of call on one device. Launches of it take turns: they share the block, which the driver copies."""

    def __init__(self, problem: Problem, buffers: Buffers, device: Device, loaded: Loaded) -> None:
        """Keeps sizes and addresses of the tensors, never the tensors."""
        plan = make_plan(problem, loaded.kernel, buffers, sm_count=device.sm_count, work_counter_address=0)
        cuda = driver.bindings()
        self.kernel, self.ordinal, self.out_shape = loaded.kernel, device.ordinal, problem.out_shape
        params = problem.params
        self.out_dtype = default_out_dtype(params.q.dtype)
        same = params.q.shape == problem.out_shape and params.q.dtype == self.out_dtype
        self.out_like_q = same and params.q.is_contiguous()
        self.only_out = params.out is None and not params.return_lse and params.custom_mask is None
        self._counters = device.counters
        self._function, self._context = loaded.function, device.context
        self._lock = threading.Lock()
        self._counter = 0
        self._last: dict[str, int] | None = None
        self._block, self._owner = aligned_block()
        for name, value in plan.scalars.items():
            setattr(self._block, name, value)
        start = ctypes.addressof(self._block)
        self._maps = {}
        for name, spec in plan.maps.items():
            tensormap.write(spec, start + OFFSETS[name])
            self._maps[name] = cuda.CUtensorMap(_ptr=start + OFFSETS[name])
        self._argv = (ctypes.c_void_p * 1)(start)
        self._argv_address = ctypes.addressof(self._argv)
        self._config, self._stream = self._configuration(plan.grid), streams.LEGACY
        self._addresses = {name: self._address(argument(problem, buffers, name)) for name in _FIELDS_OF}
        given = {name: tensor for name in _FIELDS_OF if isinstance(tensor := getattr(params, name), torch.Tensor)}
        self._spans = {name: span_bytes(tensor) for name, tensor in given.items()}
        self._multiples = [(name, multiple_of(name, tensor)) for name, tensor in given.items()]
        self._outputs = [name for name in OUTPUTS if name in given]
        self._launch = cuda.cuLaunchKernelEx
        self._current = cuda.cuCtxGetCurrent
        self._replace = cuda.cuTensorMapReplaceAddress
        self._is_capturing, self._stream_id = cuda.cuStreamIsCapturing, cuda.cuStreamGetId

    def _configuration(self, grid: int) -> Any:
        config = driver.bindings().CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self.kernel.threads, 1, 1
        config.sharedMemBytes = self.kernel.smem_bytes
        config.hStream = streams.LEGACY
        config.numAttrs = 0
        return config

    @staticmethod
    def _address(tensor: Any) -> int:
        return 0 if tensor is None else int(tensor.data_ptr())

    def accepts(self, addresses: dict[str, int]) -> bool:
        """Whether tensors of this kind of call may lie there: aligned, and outputs apart from everything else.

        The same as :func:`check_addresses`, which says what is wrong, but in numbers that are known.
        """
        for name, multiple in self._multiples:
            if addresses[name] % multiple:
                return False
        for output in self._outputs:
            start = addresses[output]
            end = start + self._spans[output]
            for name, other in addresses.items():
                if other < end and start < other + self._spans[name] and name != output:
                    return False
        return True

    def launch(self, addresses: dict[str, int], fresh: Iterable[tuple[str, int]], stream: int) -> None:
        """Enqueue on ``stream``.

        Args:
            addresses: by argument name, the tensors that the call holds; never changed once it was passed.
            fresh: name and address of the tensors made for this launch; they win.
            stream: the driver's handle.
        """
        status, context = self._current()
        if status or int(context) != self._context:
            with driver.current_context(self._context):
                self._enqueue(addresses, fresh, stream)
        else:
            self._enqueue(addresses, fresh, stream)

    def _enqueue(self, addresses: dict[str, int], fresh: Iterable[tuple[str, int]], stream: int) -> None:
        counter = self._counters.of_stream(_LEGACY_ID) if stream == streams.LEGACY else self._counter_for(stream)
        with self._lock:
            known = self._addresses
            if addresses is not self._last:
                for name, address in addresses.items():
                    if known[name] != address:
                        self._move(name, address)
                self._last = addresses
            for name, address in fresh:
                if known[name] != address:
                    self._move(name, address)
            if counter != self._counter:
                self._block.work_counter = self._counter = counter
            if stream != self._stream:
                self._config.hStream = self._stream = stream
            (status,) = self._launch(self._config, self._function, self._argv_address, 0)
        if status:
            driver.raise_for(f"cuLaunchKernelEx of {self.kernel.name}", status)

    def _move(self, name: str, address: int) -> None:
        """Point the block to a tensor's new address."""
        maps, pointers = _FIELDS_OF[name]
        for field in maps:
            (status,) = self._replace(self._maps[field], address)
            if status:
                driver.raise_for(f"cuTensorMapReplaceAddress of {field}", status)
        for field in pointers:
            setattr(self._block, field, address)
        self._addresses[name] = address

    def _counter_for(self, stream: int) -> int:
        """Address of the work counter: the stream's own, or a fresh one in a capture (see :mod:`.counters`)."""
        status, capturing = self._is_capturing(stream)
        if status:
            driver.raise_for("cuStreamIsCapturing", status)
        if int(capturing):
            return self._counters.of_captured_launch()
        status, stream_id = self._stream_id(stream)
        if status:
            driver.raise_for("cuStreamGetId", status)
        return self._counters.of_stream(int(stream_id))
