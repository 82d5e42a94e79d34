"""Prepared launches: parameter blocks and launch configurations of one signature, patched for every launch.

Host time is spent once per signature (form and sizes). A launch then compares a few addresses, rewrites what moved,
and calls the driver. :class:`PreparedLaunches` keeps those that were used last.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from .._call.arguments import OUTPUTS, POINTERS, TENSOR_MAPS, TENSORS
from .._call.checks import TMA_BYTES, span_bytes
from .._call.options import multiple_of
from .._call.problem import Problem
from .._cuda import driver, memory, streams
from .._cuda.device import Device
from .buffers import WORKSPACE, Buffers
from .loader import Loaded
from .planner import Planner
from .step import Steps

MAX_PREPARED = 256  # signatures kept, a few KB each; the one that was not used for longest goes first
_TMA = ("q", "k", "v", "out")
_NEW = frozenset(("out", "lse", WORKSPACE))  # of what a launch makes, what it leaves to the kernels to fill
_FIELDS_OF: dict[str, tuple[list[str], list[str]]] = {  # argument -> (tensor maps, pointers) that hold its address
    name: (
        [field for field, holder in TENSOR_MAPS.items() if holder == name],
        [field for field, holder in POINTERS.items() if holder == name],
    )
    for name in ("", *TENSORS)
} | {WORKSPACE: (["tma_vt"], ["partial"])}


class Prepared:
    """One signature on one device. Launches of it take turns: they share blocks, which the driver copies.

    ``token`` stands for the signature that it was filled in for, and is another one when it is filled in anew.
    """

    def __init__(self) -> None:
        """Nothing is prepared yet."""
        self.token: object = None
        self._lock = threading.Lock()
        self._steps = Steps()
        self._counter = self._stream = -1
        self._launch, self._current = driver.raw("cuLaunchKernelEx"), driver.raw("cuCtxGetCurrent", brief=True)
        self._found = ctypes.c_void_p(0)
        self._found_at = ctypes.byref(self._found)

    def fill(
        self,
        names: tuple[str, ...],
        problem: Problem,
        buffers: Buffers,
        planner: Planner,
        device: Device,
        loaded: Mapping[str, Loaded],
    ) -> object:
        """Prepare the launch of a call and return its token. Keeps sizes of tensors, never the tensors.

        Args:
            names: the tensors that the call holds.
            problem: the call.
            buffers: the tensors that were made for it.
            planner: makes the plan.
            device: where.
            loaded: the kernels by phase.
        """
        plan = planner.plan(problem, buffers)
        params = problem.params
        with self._lock:
            self.token = None  # until all of it is there
            self.ordinal, self.out_shape = device.ordinal, problem.out_shape
            made = buffers.made(params)
            # What a launch makes, as memory.empty is told it, where that is all there is to do, else None; and whether
            # what it returns is the first of that. One tuple, since it is read before the token is compared.
            makes: list[tuple[Any, ...]] | None = None
            if type(params.q) in memory.PLAIN and _NEW.issuperset(made):
                tensors = [getattr(buffers, name) for name in made]
                makes = [(tuple(x.shape), x.stride(), x.dtype, device.ordinal) for x in tensors]
            self.making = makes, made[:1] == ("out",) and not params.return_lse
            self.workspace_floats = 0 if buffers.workspace is None else buffers.workspace.numel()
            self._counters, self._context = device.counters, device.context
            self._steps.fill(plan, loaded)
            self.steps, self.blocks = self._steps.steps, self._steps.blocks
            self._counter = self._stream = -1  # the block's may be gone
            self._threshold = problem.threshold
            # What is replaced by a tensor that every launch makes is not pointed to.
            self._names = (*["" if name in made else name for name in names], *made)
            self._addresses = [-1] * len(self._names)
            self._last: Sequence[int] = ()
            self._remember(names, problem)
            self.token = object()
            return self.token

    def _remember(self, names: tuple[str, ...], problem: Problem) -> None:
        """What :meth:`accepts` compares addresses with."""
        params = problem.params
        self._tma = [names.index(name) for name in _TMA if name in names]
        self._same = [names.index(name) for name in ("k", "v")] if problem.latent and params.v is not None else []
        self._mask = names.index("custom_mask") if params.custom_mask is not None else -1
        self._mask_multiple = 1 if params.custom_mask is None else multiple_of("custom_mask", params.custom_mask)
        self._outputs = [index for index, name in enumerate(names) if name in OUTPUTS]
        self._spans = [span_bytes(getattr(params, name)) for name in names] if self._outputs else []

    def accepts(self, addresses: Sequence[int]) -> bool:
        """Whether tensors of this signature may lie there: aligned, and outputs apart from everything else.

        MLA's values must lie where its keys do.

        The same as :func:`check_addresses`, which says what is wrong, but in numbers that are known. False where it
        cannot tell.
        """
        if 0 in addresses:
            return False
        for index in self._tma:
            if addresses[index] % TMA_BYTES:
                return False
        if self._same and addresses[self._same[0]] != addresses[self._same[1]]:
            return False
        if self._mask_multiple > 1 and addresses[self._mask] % self._mask_multiple:
            return False
        for output in self._outputs:
            start = addresses[output]
            end = start + self._spans[output]
            for index, other in enumerate(addresses):
                if other < end and start < other + self._spans[index] and index != output:
                    return False
        return True

    def launch(
        self, token: object, addresses: Sequence[int], made: Sequence[int], threshold: float, stream: int
    ) -> bool:
        """Enqueue on ``stream``; False, and nothing happened, if this was filled in for another signature meanwhile.

        Args:
            token: what :meth:`fill` returned for the signature of the call.
            addresses: of the tensors that the call holds; never changed once it was passed.
            made: of the tensors made for this launch, which win.
            threshold: of the host; 0 where there is none.
            stream: the driver's handle.
        """
        with self._lock:
            if token is not self.token:
                return False
            self._current(self._found_at)
            if self._found.value != self._context:
                with driver.current_context(self._context):
                    self._enqueue(addresses, made, threshold, stream)
            else:
                self._enqueue(addresses, made, threshold, stream)
        return True

    def _enqueue(self, addresses: Sequence[int], made: Sequence[int], threshold: float, stream: int) -> None:
        if addresses is not self._last:
            self._move(addresses, 0)
            self._last = addresses
        if made:
            self._move(made, len(addresses))
        if threshold != self._threshold or stream != self._stream or stream != streams.LEGACY:
            counter = self._counters.of_launch(stream)
            if counter != self._counter or threshold != self._threshold or stream != self._stream:
                self._set_numbers(counter, threshold, stream)
        for step in self.steps:
            status = self._launch(*step.arguments)
            if status:
                driver.raise_for(f"cuLaunchKernelEx of {step.name}", status)

    def _set_numbers(self, counter: int, threshold: float, stream: int) -> None:
        for block in self.blocks:
            block.fields.work_counter, block.fields.threshold_value = counter, threshold
        for step in self.steps:
            step.config.hStream = stream
        self._counter, self._threshold, self._stream = counter, threshold, stream

    def _move(self, addresses: Sequence[int], first: int) -> None:
        """Point the blocks to new addresses, those of the tensors from number ``first`` on."""
        known = self._addresses
        for index, address in enumerate(addresses, first):
            if known[index] == address:
                continue
            maps, pointers = _FIELDS_OF[self._names[index]]
            for block in self.blocks:
                for field in maps if address else ():  # nothing is loaded from an empty tensor
                    if field in block.used:
                        block.maps[field].move(address)
                for field in pointers:
                    setattr(block.fields, field, address)
            known[index] = address


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

    def take(self) -> Prepared:
        """One to fill in."""
        with self._lock:
            return self._kept.popitem(last=False)[1][0] if len(self._kept) >= MAX_PREPARED else Prepared()

    def keep(self, signature: Hashable, prepared: Prepared, token: object) -> None:
        """Let calls of a signature find one that was filled in for it."""
        with self._lock:
            self._kept[signature] = prepared, token
