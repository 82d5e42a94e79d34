"""The launch of a new call object whose form is known: its sizes are filled into what stands ready for that form.

A serving engine makes a new call in every layer and step, most of them in sizes not seen before, and it waits for the
host wherever that takes longer than a kernel. What is out of the ordinary, or would be refused for where its tensors
lie, is left to :mod:`.prepared`, which sends the driver the same: a test compares the bytes.
"""

from __future__ import annotations

import ctypes
import threading

import torch
from skimattn.codegen.tiles.common import ELEMENT_BYTES

from .._call.arguments import POINTERS
from .._call.checks import TMA_BYTES
from .._call.problem import Problem
from .._call.sizes import check_sizes
from .._cuda import driver, streams
from .._cuda.device import Device
from ..params import Params
from .buffers import Buffers
from .loader import Loaded
from .plan import Planner, extent_of, kv_box_rows, numbers_of, sized_scalars, work_items
from .step import Step

# The tensors that a call may have here, q, k and v first.
SERVED = frozenset(("q", "k", "v", "page_table", "cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k", "sinks"))
_POINTER_OF = {name: field for field, name in POINTERS.items()}


class Shortcut:
    """Launches calls of one form, with one set of heads and columns, on one device. Launches take turns."""

    def __init__(
        self, names: tuple[str, ...], problem: Problem, buffers: Buffers, planner: Planner, gpu: Device, loaded: Loaded
    ) -> None:
        """``problem`` is a call of that form, whose tensors are called ``names``."""
        plan = planner.plan(problem, buffers)
        self._form, self._numbers = problem.form, numbers_of(problem)
        self._planner, self._gpu, self._kernel = planner, gpu, loaded.kernel
        tensors = [getattr(problem.params, name) for name in names]
        self._traits = [(tensor.dtype, tensor.device, tensor.dim()) for tensor in tensors]
        self._pointers = [(index, _POINTER_OF[name]) for index, name in enumerate(names) if name in _POINTER_OF]
        self._size, self._out_size = ELEMENT_BYTES[loaded.kernel.dtype], ELEMENT_BYTES[loaded.kernel.out_dtype]
        self._out_dtype = buffers.out.dtype
        self._hnd = problem.form.paged and problem.params.kv_layout == "HND"
        (planned,) = plan.kernels
        self._box_rows = planned.maps["tma_k"].box[1]
        self._step = Step()
        self._step.fill(planned, loaded)
        self._maps = [self._step.maps[name] for name in ("tma_q", "tma_k", "tma_v", "tma_o")]
        self._lock = threading.Lock()
        self._launch, self._current = driver.raw("cuLaunchKernelEx"), driver.raw("cuCtxGetCurrent")
        self._found = ctypes.c_void_p(0)
        self._found_at = ctypes.byref(self._found)

    def launch(self, params: Params, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        """Enqueue on torch's current stream; the output. None, and nothing happened, for a call of another kind.

        Raises:
            ArgumentError: the sizes are not acceptable.
        """
        gradients, addresses = torch.is_grad_enabled(), []
        for tensor, (dtype, device, rank) in zip(tensors, self._traits, strict=True):
            address = tensor.data_ptr()
            if tensor.dtype is not dtype or tensor.device != device or tensor.dim() != rank or not address:
                return None
            if tensor.is_neg() or (gradients and tensor.requires_grad):
                return None
            addresses.append(address)
        if (addresses[0] | addresses[1] | addresses[2]) % TMA_BYTES:
            return None
        problem = check_sizes(self._form, params)
        box_rows = self._box_rows if problem.page_size else kv_box_rows(problem.len_k, self._kernel.tile_n)
        if numbers_of(problem) != self._numbers or box_rows != self._box_rows or problem.empty:
            return None
        out = params.q.new_empty(problem.out_shape, dtype=self._out_dtype)
        scalars = sized_scalars(problem, self._kernel, Buffers(out))
        for index, field in self._pointers:
            scalars[field] = addresses[index]
        scalars["out"] = addresses_of_out = out.data_ptr()
        stream = streams.current(self._gpu.ordinal)
        scalars["work_counter"] = self._gpu.counters.of_launch(stream)
        with self._lock:
            self._fill(tensors, addresses, out, addresses_of_out)
            block, config = self._step.block, self._step.config
            for name, value in scalars.items():
                setattr(block, name, value)
            config.gridDimX, config.hStream = min(self._gpu.sm_count, work_items(problem, self._kernel)), stream
            self._enqueue()
        return out

    def _fill(
        self, tensors: tuple[torch.Tensor, ...], addresses: list[int], out: torch.Tensor, address_of_out: int
    ) -> None:
        """Write the tensor maps."""
        q, k, v = tensors[:3]
        to_q, to_k, to_v, to_o = self._maps
        to_q.rewrite(addresses[0], extent_of(q, self._size))
        extent = extent_of(k, self._size, self._hnd)
        to_k.rewrite(addresses[1], extent)
        same = v.shape == k.shape and v.stride() == k.stride()
        to_v.rewrite(addresses[2], extent if same else extent_of(v, self._size, self._hnd))
        to_o.rewrite(address_of_out, extent_of(out, self._out_size))

    def _enqueue(self) -> None:
        self._current(self._found_at)
        if self._found.value == self._gpu.context:
            status = self._launch(*self._step.arguments)
        else:
            with driver.current_context(self._gpu.context):
                status = self._launch(*self._step.arguments)
        if status:
            driver.raise_for(f"cuLaunchKernelEx of {self._step.name}", status)
