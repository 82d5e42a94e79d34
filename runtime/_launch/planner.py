"""Makes the plans of calls of one form on one device: which kernels run, in which order, and what each is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from skimattn.codegen.features import BY_NAME
from skimattn.codegen.matrix import FP8
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.common import panel_columns

from .._call.arguments import POINTERS
from .._call.problem import Problem
from .._select.workspace import places_of
from .buffers import Buffers
from .decode import ALL_LATENT, ALL_REQUESTS, Cut, Cutter, plan_decode, rule_of
from .plan import (
    KernelLaunch,
    LaunchPlan,
    TensorMapSpec,
    Value,
    argument,
    fixed_scalars,
    kv_box_rows,
    map_of,
    numbers_of,
    page_box_rows,
    shared_in_l2,
    sized_scalars,
    work_items,
)
from .transpose import map_of_places


class Planner:
    """Makes the plans of calls of one form on one device.

    Args:
        rows: the kernels that compute the call, by phase: ``prefill``, or ``decode`` and ``combine``, or all three; and
            with ``prefill`` perhaps ``transpose``.
        sm_count: multiprocessors of the device; a persistent grid has at most as many CTAs as fit.
    """

    def __init__(self, rows: Mapping[str, Kernel], sm_count: int) -> None:
        """Nothing is planned yet."""
        self.rows, self._sm_count = rows, sm_count
        self._fixed: dict[tuple[object, ...], dict[str, Value]] = {}
        self._cutters: dict[tuple[object, ...], Cutter] = {}

    def workspace_floats(self, problem: Problem) -> int:
        """What a launch needs for partial results, or before them for V transposed: they take turns."""
        cut = self._cut(problem)
        transpose = self.rows.get("transpose")
        floats = 0 if transpose is None else places_of(problem, transpose).nbytes // 4
        return floats if cut is None else max(floats, cut.workspace_floats)

    def plan(self, problem: Problem, buffers: Buffers) -> LaunchPlan:
        """The plan of one launch, all but the addresses of pointers and the work counter.

        Args:
            problem: a validated call with at least one row.
            buffers: outputs and packed custom mask.
        """
        launches: list[KernelLaunch] = []
        if "prefill" in self.rows:
            launches += self._prefill(problem, buffers)
        cut = self._cut(problem)
        if cut is not None:
            launches += self._decode(problem, buffers, cut)
        return LaunchPlan(tuple(launches))

    def _cut(self, problem: Problem) -> Cut | None:
        if "decode" not in self.rows:
            return None
        return self.cutter(problem).cut(problem.batch, problem.len_q, problem.len_k)

    def cutter(self, problem: Problem) -> Cutter:
        """What cuts the decoded requests of calls like this one."""
        key = numbers_of(problem)
        found = self._cutters.get(key)
        if found is None:
            found = self._cutters[key] = Cutter(problem, self.rows["decode"], self._sm_count)
        return found

    def _prefill(self, problem: Problem, buffers: Buffers) -> Iterator[KernelLaunch]:
        kernel = self.rows["prefill"]
        grid = min(self._sm_count, work_items(problem, kernel))
        columns, columns_o = panel_columns(kernel.dtype), panel_columns(kernel.out_dtype)
        maps = {
            "tma_q": map_of(problem.params.q, kernel.dtype, (columns, kernel.group_rows, 1, 1), problem),
            **_maps_of_keys(problem, kernel),
            "tma_o": map_of(buffers.out, kernel.out_dtype, (columns_o, kernel.group_rows, 1, 1), problem),
        }
        scalars = sized_scalars(problem, kernel, buffers)
        if "decode" in self.rows:
            heads, requests = shared_in_l2(problem, varlen_q=True)
            scalars |= {**rule_of(problem), "heads_in_l2": heads, "requests_in_l2": requests}
        launch = KernelLaunch(kernel, maps, self._fixed_of(problem, kernel), scalars, grid)
        if "transpose" in self.rows:
            yield from self._in_rounds(launch, problem, buffers)
        else:
            yield launch

    def _in_rounds(self, prefill: KernelLaunch, problem: Problem, buffers: Buffers) -> Iterator[KernelLaunch]:
        """The same, after what transposes V, for as many requests at a time as the workspace holds."""
        kernel = self.rows["transpose"]
        places = places_of(problem, kernel)
        assert buffers.workspace is not None
        maps = {**prefill.maps, "tma_vt": map_of_places(places, kernel, buffers.workspace.data_ptr())}
        grid = min(self._sm_count * kernel.ctas_per_sm, places.work)
        for index in range(places.rounds):
            scalars: dict[str, Value] = {
                **prefill.scalars,
                "mask": BY_NAME["mask"].encode(problem.mask),
                "first_request": index * places.requests,
                "round_requests": places.requests,
            }
            yield KernelLaunch(kernel, maps, prefill.fixed, scalars, grid)
            yield KernelLaunch(prefill.kernel, maps, prefill.fixed, scalars, prefill.grid, shares_block=True)

    def _decode(self, problem: Problem, buffers: Buffers, cut: Cut) -> Iterator[KernelLaunch]:
        kernel, combine = self.rows["decode"], self.rows["combine"]
        scalars, maps = sized_scalars(problem, kernel, buffers), _maps_of_keys(problem, kernel)
        if kernel.keys_dtype in FP8 and "prefill" not in self.rows:  # perhaps since there is none
            scalars |= ALL_REQUESTS
        if problem.latent:
            scalars |= ALL_LATENT
        fixed = self._fixed_of(problem, kernel)
        for row, own_maps, own_scalars, grid in plan_decode(
            problem, kernel, combine, scalars, maps, cut, self._sm_count
        ):
            yield KernelLaunch(row, own_maps, fixed, own_scalars, grid, shares_block=row is combine)

    def _fixed_of(self, problem: Problem, kernel: Kernel) -> dict[str, Value]:
        key = (kernel.phase, *numbers_of(problem))
        fixed = self._fixed.get(key)
        if fixed is None:
            fixed = self._fixed[key] = fixed_scalars(problem, kernel)
        return fixed


def _maps_of_keys(problem: Problem, kernel: Kernel) -> dict[str, TensorMapSpec]:
    params, hnd, rows = problem.params, False, kv_box_rows(problem.len_k, kernel.tile_n)
    if problem.page_size:
        rows, hnd = page_box_rows(problem.page_size, kernel.tile_n), params.kv_layout == "HND"
    box = (panel_columns(kernel.keys_dtype), rows, 1, 1)
    maps = {"tma_k": map_of(params.k, kernel.keys_dtype, box, problem, hnd)}
    if not problem.latent:
        assert params.v is not None
        maps["tma_v"] = map_of(params.v, kernel.keys_dtype, box, problem, hnd)
    return maps


def make_plan(
    problem: Problem, rows: Mapping[str, Kernel], buffers: Buffers, *, sm_count: int, work_counter_address: int
) -> LaunchPlan:
    """The plan of one launch with all addresses in it, for whoever launches it once.

    Args:
        problem: a validated call with at least one row.
        rows: the kernels that compute it, by phase.
        buffers: outputs, packed custom mask and workspace.
        sm_count: multiprocessors of the device.
        work_counter_address: device address of a uint32 that is zero while no launch uses it.
    """
    plan = Planner(rows, sm_count).plan(problem, buffers)
    tensors = {field: argument(problem, buffers, name) for field, name in POINTERS.items()}
    tensors["partial"] = buffers.workspace
    pointers = {field: tensor.data_ptr() for field, tensor in tensors.items() if tensor is not None}
    for launch in plan.kernels:
        launch.scalars = {**launch.fixed, **launch.scalars, **pointers, "work_counter": work_counter_address}
    return plan
