"""The kernels of calls that differ in sizes only, one after the other: all but what follows from sizes stands ready."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence

from skimattn.codegen.parameter_block import OFFSETS

from .._call.arguments import POINTERS
from .._call.checks import MAX_DIM
from .._call.problem import Problem
from .._cuda import driver
from .._cuda.device import Device
from .buffers import WORKSPACE, Buffers
from .decode import Cut
from .fit import Common, DecodeFit, PrefillFit, Sizes
from .loader import Loaded
from .plan import Box, LaunchPlan, kv_box_lengths
from .planner import Planner
from .step import Block, Step, scattered_writer
from .tensormap import address_comes_first

_WORD = 8  # bytes of an address
_POINTER_OF = {name: field for field, name in POINTERS.items()} | {WORKSPACE: "partial", "": "work_counter"}
_Q_AT, _K_AT, _V_AT, _O_AT = (OFFSETS[name] // _WORD for name in ("tma_q", "tma_k", "tma_v", "tma_o"))
_ALL_POINTERS = slice(OFFSETS["out"], OFFSETS["work_counter"] + _WORD)
_WHOLE = slice(None)


class Fitted:
    """The kernels of one set of phases. Launches of them take turns: they share blocks, which the driver copies.

    They are fitted to calls whose requests have a number of keys in ``lengths`` at most. ``cut`` says how requests are
    cut by numbers of them, of rows and of keys; None where none are decoded.
    """

    def __init__(
        self,
        problem: Problem,
        buffers: Buffers,
        planner: Planner,
        gpu: Device,
        loaded: Mapping[str, Loaded],
        pointers: Sequence[str],
    ) -> None:
        """``problem`` is one of the calls; ``pointers`` are the tensors of which :meth:`launch` is told the addresses,
        in the order of their fields, where "" is the work counter. ``loaded`` are the kernels by phase.
        """
        self._lock, self._context = threading.Lock(), gpu.context
        self._sizes: Sizes | None = None  # that all is fitted to
        self._stream, self._threshold = 0, problem.threshold
        self.cut = planner.cutter(problem).cut if "decode" in loaded else None
        self.lengths = range(MAX_DIM)
        self._prefill: PrefillFit | None = None
        self._decode: DecodeFit | None = None
        self._steps, self._blocks = {phase: Step() for phase in loaded}, list[Block]()
        self._prepare(Common(problem, buffers, gpu.sm_count), planner.plan(problem, buffers), loaded)
        self._all = self._running = tuple(self._steps.values())
        self._without_combine = tuple([step for phase, step in self._steps.items() if phase != "combine"])
        self._words = [block.memory.cast("Q") for block in self._blocks]
        # What is not among them is null, in all calls.
        self._write_pointers = scattered_writer(self._blocks[0].memory, [_POINTER_OF[name] for name in pointers])
        first, *others = [block.memory[_ALL_POINTERS] for block in self._blocks]
        self._copies = [(other, first) for other in others]
        self._addresses_first = address_comes_first()
        self._start, self._current = driver.raw("cuLaunchKernelEx"), driver.raw("cuCtxGetCurrent", brief=True)
        self._found = ctypes.c_void_p(0)
        self._found_at = ctypes.byref(self._found)

    def _prepare(self, form: Common, plan: LaunchPlan, loaded: Mapping[str, Loaded]) -> None:
        """Fill in blocks and steps."""
        steps, boxes = self._steps, list[tuple[Box, Box]]()
        for planned in plan.kernels:
            kernel, block = planned.kernel, Block()
            if kernel.phase not in ("prefill", "decode") or len(boxes) == len({*loaded} - {"combine"}):
                continue  # what comes after the first round
            block.fill(planned)
            form.settle(block)
            self._blocks.append(block)
            step = steps[kernel.phase]
            step.fill(planned.grid, loaded[kernel.phase], block)
            boxes.append((planned.maps["tma_k"].box, planned.maps["tma_v"].box))
            if not block.fields.page_size:
                lengths = kv_box_lengths(block.fields.kv_box_rows, kernel.tile_n)
                self.lengths = range(max(lengths.start, self.lengths.start), min(lengths.stop, self.lengths.stop))
            if kernel.phase == "prefill":
                self._prefill = PrefillFit(form, kernel, step, block, form.ragged or "decode" in loaded)
            else:
                steps["combine"].fill(1, loaded["combine"], block)
                source = self._blocks[0] if len(boxes) > 1 and boxes[0] == boxes[1] else None
                self._decode = DecodeFit(form, kernel, (step, steps["combine"]), block, source)

    def launch(
        self,
        sizes: Sizes,
        cut: Cut | None,
        addresses: tuple[int, int, int, int],
        pointers: Sequence[int],
        stream: int,
        threshold: float,
    ) -> None:
        """Enqueue on ``stream``. ``addresses`` are those of q, k, v and out; ``cut`` is what :attr:`cut` says."""
        at_q, at_k, at_v, at_out = addresses
        with self._lock:
            if sizes != self._sizes:
                self._fit(at_q, sizes, cut)
            if self._addresses_first:
                for words in self._words:
                    words[_Q_AT], words[_K_AT], words[_V_AT] = at_q, at_k, at_v
                if self._prefill is not None:
                    self._words[0][_O_AT] = at_out
            else:
                self._move(addresses)
            self._write_pointers(*pointers)
            for to, source in self._copies:
                to[_WHOLE] = source
            if threshold != self._threshold:
                self._set_threshold(threshold)
            if stream != self._stream:
                self._set_stream(stream)
            self._current(self._found_at)
            if self._found.value != self._context:
                with driver.current_context(self._context):
                    self._enqueue()
            else:
                self._enqueue()

    def _fit(self, address: int, sizes: Sizes, cut: Cut | None) -> None:
        self._sizes = None  # until all of it is there
        if self._prefill is not None:
            self._prefill.fit(address, sizes)
        if self._decode is not None:
            assert cut is not None
            self._decode.fit(address, sizes, cut)
            self._running = self._all if cut.parts > 1 else self._without_combine
        self._sizes = sizes

    def _move(self, addresses: Sequence[int]) -> None:
        for block in self._blocks:
            for name, address in zip(("tma_q", "tma_k", "tma_v", "tma_o"), addresses, strict=True):
                if name in block.used:
                    block.maps[name].move(address)

    def _set_threshold(self, threshold: float) -> None:
        for block in self._blocks:
            block.fields.threshold_value = threshold
        self._threshold = threshold

    def _set_stream(self, stream: int) -> None:
        for step in self._all:
            step.config.hStream = stream
        self._stream = stream

    def _enqueue(self) -> None:
        for step in self._running:
            status = self._start(*step.arguments)
            if status:
                driver.raise_for(f"cuLaunchKernelEx of {step.name}", status)
