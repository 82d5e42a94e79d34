"""Prepared launches: parameter blocks and launch configurations of one signature, patched for every launch.

Host time is spent once per signature (shapes, strides, dtypes, options). A launch then compares a few addresses,
rewrites what moved, and calls the driver. :class:`PreparedLaunches` keeps those that were used last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable

from .._call.arguments import OUTPUTS, POINTERS, TENSOR_MAPS, TENSORS
from .._call.checks import TMA_BYTES, span_bytes
from .._call.dtypes import default_out_dtype
from .._call.options import multiple_of
from .._call.problem import Problem
from .._cuda import driver, streams
from .._cuda.device import Device
from .buffers import Buffers
from .loader import Loaded
from .plan import make_plan
from .step import Step

MAX_PREPARED = 256  # signatures kept, a few KB each; the one that was not used for longest goes first
_LEGACY_ID = -1  # of the default stream, which cannot be captured and has no other handle
_NOWHERE = dict.fromkeys(TENSORS, 0)
_TMA = ("q", "k", "v", "out")
_FIELDS_OF: dict[str, tuple[list[str], list[str]]] = {  # argument -> (tensor maps, pointers) that hold its address
    name: (
        [field for field, holder in TENSOR_MAPS.items() if holder == name],
        [field for field, holder in POINTERS.items() if holder == name],
    )
    for name in TENSORS
}


class Prepared:
    """One signature on one device. Launches of it take turns: they share blocks, which the driver copies.

    ``token`` stands for the signature that it was filled in for, and is another one when it is filled in anew.
    """

    def __init__(self) -> None:
        """Nothing is prepared yet."""
        cuda = driver.bindings()
        self.token: object = None
        self._lock = threading.Lock()
        self._steps: list[Step] = []
        self._launch, self._current = cuda.cuLaunchKernelEx, cuda.cuCtxGetCurrent
        self._is_capturing, self._stream_id = cuda.cuStreamIsCapturing, cuda.cuStreamGetId

    def fill(
        self, problem: Problem, buffers: Buffers, addresses: dict[str, int], device: Device, loaded: Loaded
    ) -> object:
        """Prepare the launch of a call and return its token. Keeps sizes of tensors, never the tensors."""
        plan = make_plan(problem, loaded.kernel, buffers, sm_count=device.sm_count, work_counter_address=0)
        params = problem.params
        with self._lock:
            self.token = None  # until all of it is there
            self.ordinal, self.out_shape = device.ordinal, problem.out_shape
            self.out_dtype = default_out_dtype(params.q.dtype)
            same = problem.head_dim == problem.head_dim_v and params.q.dtype == self.out_dtype
            self.out_like_q = same and params.q.is_contiguous()
            self.only_out = params.out is None and not params.return_lse and params.custom_mask is None
            self._counters, self._context = device.counters, device.context
            self._steps += [Step() for _ in plan.kernels[len(self._steps) :]]
            self._used = self._steps[: len(plan.kernels)]
            for step, planned in zip(self._used, plan.kernels, strict=True):
                step.fill(planned, loaded)
            self._counter, self._stream, self._threshold = 0, streams.LEGACY, problem.threshold
            self._last: dict[str, int] | None = None
            self._addresses = _NOWHERE | addresses
            self._remember(problem)
            self.token = object()
            return self.token

    def _remember(self, problem: Problem) -> None:
        """What :meth:`accepts` compares addresses with."""
        params = problem.params
        self._mask_multiple = 1 if params.custom_mask is None else multiple_of("custom_mask", params.custom_mask)
        self._outputs = [name for name in OUTPUTS if name in problem.form.given]
        self._spans: dict[str, int] = {}
        if self._outputs:
            self._spans = {name: span_bytes(getattr(params, name)) for name in problem.form.given}

    def accepts(self, addresses: dict[str, int]) -> bool:
        """Whether tensors of this signature may lie there: aligned, and outputs apart from everything else.

        The same as :func:`check_addresses`, which says what is wrong, but in numbers that are known. False where it
        cannot tell.
        """
        for name, address in addresses.items():
            if not address or (name in _TMA and address % TMA_BYTES):
                return False
        if self._mask_multiple > 1 and addresses["custom_mask"] % self._mask_multiple:
            return False
        for output in self._outputs:
            start = addresses[output]
            end = start + self._spans[output]
            for name, other in addresses.items():
                if other < end and start < other + self._spans[name] and name != output:
                    return False
        return True

    def launch(
        self,
        token: object,
        addresses: dict[str, int],
        fresh: Iterable[tuple[str, int]],
        threshold: float,
        stream: int,
    ) -> bool:
        """Enqueue on ``stream``; False, and nothing happened, if this was filled in for another signature meanwhile.

        Args:
            token: what :meth:`fill` returned for the signature of the call.
            addresses: by argument name, the tensors that the call holds; never changed once it was passed.
            fresh: name and address of the tensors made for this launch; they win.
            threshold: of the host; 0 where there is none.
            stream: the driver's handle.
        """
        status, context = self._current()
        if status or int(context) != self._context:
            with driver.current_context(self._context):
                return self._enqueue(token, addresses, fresh, threshold, stream)
        return self._enqueue(token, addresses, fresh, threshold, stream)

    def _enqueue(
        self,
        token: object,
        addresses: dict[str, int],
        fresh: Iterable[tuple[str, int]],
        threshold: float,
        stream: int,
    ) -> bool:
        counter = self._counters.of_stream(_LEGACY_ID) if stream == streams.LEGACY else self._counter_for(stream)
        with self._lock:
            if token is not self.token:
                return False
            known = self._addresses
            if addresses is not self._last:
                for name, address in addresses.items():
                    if known[name] != address:
                        self._move(name, address)
                self._last = addresses
            for name, address in fresh:
                if known[name] != address:
                    self._move(name, address)
            if counter != self._counter or threshold != self._threshold or stream != self._stream:
                self._set_numbers(counter, threshold, stream)
            for step in self._used:
                (status,) = self._launch(step.config, step.function, step.argv_address, 0)
                if status:
                    driver.raise_for(f"cuLaunchKernelEx of {step.name}", status)
        return True

    def _set_numbers(self, counter: int, threshold: float, stream: int) -> None:
        for step in self._used:
            step.block.work_counter, step.block.threshold_value = counter, threshold
            step.config.hStream = stream
        self._counter, self._threshold, self._stream = counter, threshold, stream

    def _move(self, name: str, address: int) -> None:
        """Point the blocks to a tensor's new address."""
        maps, pointers = _FIELDS_OF[name]
        for step in self._used:
            for field in maps:
                step.maps[field].move(address)
            for field in pointers:
                setattr(step.block, field, address)
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


class PreparedLaunches:
    """The prepared launches that were used last, by signature. When it is full, the oldest is filled in anew."""

    def __init__(self) -> None:
        """Empty."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Prepared, object]] = OrderedDict()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    def find(self, signature: Hashable) -> tuple[Prepared, object] | None:
        """The one of a signature and its token, if it is there."""
        with self._lock:
            found = self._kept.get(signature)
            if found is not None:
                self._kept.move_to_end(signature)
        return found

    def make(
        self,
        signature: Hashable,
        problem: Problem,
        buffers: Buffers,
        addresses: dict[str, int],
        device: Device,
        loaded: Loaded,
    ) -> tuple[Prepared, object]:
        """Fill one in; it and its token.

        Args:
            signature: that of the call.
            problem: the call.
            buffers: outputs and packed mask.
            addresses: of all tensors, those of the buffers included, by argument name.
            device: where.
            loaded: the kernel.
        """
        with self._lock:
            full = len(self._kept) >= MAX_PREPARED
            prepared = self._kept.popitem(last=False)[1][0] if full else Prepared()
        made = prepared, prepared.fill(problem, buffers, addresses, device, loaded)
        with self._lock:
            self._kept[signature] = made
        return made
