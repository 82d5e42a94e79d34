"""Compares what a call wrote with the oracle: maps and counts exactly, floats within what their types can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .build import MAP_SENTINEL, UNCOUNTED, Built, sentinel, stats_before, whole
from .cases import DTYPES, FLOAT32_BITS, Case, Content, answers, rules_of
from .layout import rows_of
from .oracle import Answer
from .oracle_e4m3 import EXP2_ERROR, FACTOR

Array = NDArray[Any]
_UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # rounding moves a value by at most this, relative
_EXP2 = {"sm90": 0.0, "sm100": EXP2_ERROR}  # part of SM100's exponentials are a polynomial's
_TINY = {"bf16": 1e-6, "fp16": 2.0**-23}  # fp16 has subnormals well within reach


@dataclass
class Result:
    """What a run wrote, on the CPU. ``tensors`` holds the call's output views by name (``out``, ``lse``, ...)."""

    built: Built
    tensors: dict[str, torch.Tensor]

    def rows(self, name: str, index: int) -> torch.Tensor:
        """The rows of one request in ``out`` or ``lse``."""
        return rows_of(self.built.case, self.tensors[name], index)


def check(result: Result, held: list[Content], expected: list[Answer] | None = None) -> list[Answer]:
    """Assert that ``result`` is what the oracle says, and nothing else was written. Returns the oracle's answers."""
    case = result.built.case
    expected = answers(case, held) if expected is None else expected
    for index, answer in enumerate(expected):
        assert not answer.ambiguous, f"{case.name}: request {index}: too close to call: {answer.ambiguous[:4]}"
    check_maps(result, expected)
    for index, (one, answer) in enumerate(zip(held, expected, strict=True)):
        if answer.out.size:
            check_floats(case, result, index, one, answer)
    check_untouched(result)
    return expected


def check_maps(result: Result, expected: list[Answer]) -> None:
    """The exact map of kept and skipped tiles, and the exact counts added to what was there."""
    case = result.built.case
    if case.skip != "stat":
        return
    if "skip_map" in result.tensors:
        wanted = np.full(result.tensors["skip_map"].shape, MAP_SENTINEL, dtype=np.uint8)
        for index, answer in enumerate(expected):
            _, groups, tiles = answer.skip_map.shape
            visited = answer.skip_map != 0
            wanted[index, :, :groups, :tiles][visited] = answer.skip_map[visited]
        got = result.tensors["skip_map"].numpy()
        wrong = np.argwhere(got != wanted)
        detail = [(*map(int, at), f"wanted {wanted[tuple(at)]}", f"got {got[tuple(at)]}") for at in wrong[:5]]
        assert not len(wrong), f"{case.name}: skip_map differs in {len(wrong)} (request, head, group, tile): {detail}"
    counts = np.stack([np.stack([answer.visited, answer.skipped], axis=-1) for answer in expected])
    counts = {"all": counts.sum(axis=(0, 1)), "batch": counts.sum(axis=1), "head": counts}[case.stats_kind]
    added = result.tensors["stats"] - stats_before(tuple(counts.shape))
    assert np.array_equal(added.numpy(), counts), f"{case.name}: counts {added.tolist()}, wanted {counts.tolist()}"


def check_floats(case: Case, result: Result, index: int, one: Content, answer: Answer) -> None:
    """Output and log-sum-exp of one request."""
    got = result.rows("out", index).double().numpy()
    _check_classes(f"{case.name}[{index}] out", got, answer.out)
    finite = np.isfinite(answer.out)
    wanted = answer.out if answer.rounded is None else answer.rounded
    error = np.where(finite, np.abs(got - np.where(finite, wanted, 0.0)), 0.0)
    with np.errstate(invalid="ignore"):
        bound = np.where(finite, out_bound(case, answer), 1.0)
    worst = np.unravel_index(np.argmax(error / bound), error.shape)
    assert (error <= bound).all(), (
        f"{case.name}[{index}] out at (row, head, column) {tuple(map(int, worst))}: got {got[worst]}, wanted "
        f"{wanted[worst]}, bound {bound[worst]:.2e}; {int((error > bound).sum())} of {error.size} are off"
    )
    assert (got[~answer.kept_keys.any(axis=2).T] == 0).all(), f"{case.name}[{index}]: rows that see nothing must be 0"
    _check_beside_torch(case, index, one, answer, got)
    if "lse" in result.tensors:
        _check_lse(case, result.rows("lse", index).double().numpy(), answer, f"{case.name}[{index}] lse")


def _check_beside_torch(case: Case, index: int, one: Content, answer: Answer, got: Array) -> None:
    """The largest error is at most twice that of PyTorch at the same precision."""
    finite = np.isfinite(answer.out)
    error, peer = (
        np.where(finite, np.abs(x - np.where(finite, answer.out, 0.0)), 0.0)
        for x in (got, same_precision(case, one, answer))
    )
    floor = _UNIT[case.dtype_out] * np.abs(answer.out[finite]).max(initial=0.0) + _TINY[case.dtype_out]
    if _sum_bits(case, answer) < FLOAT32_BITS:
        floor += out_bound(case, answer)[finite].max(initial=0.0)  # PyTorch adds up in float32
    assert error.max(initial=0.0) <= 2 * np.nan_to_num(peer).max(initial=0.0) + floor, (
        f"{case.name}[{index}]: error {error.max():.2e}, a {case.dtype} PyTorch run has {np.nan_to_num(peer).max():.2e}"
    )


def _check_classes(what: str, got: Array, wanted: Array) -> None:
    """NaN and Inf exactly where wanted. A wanted Inf may be NaN: P is rounded, so it may meet a zero."""
    finite = np.isfinite(wanted)
    wrong = np.argwhere(np.isfinite(got) != finite)
    assert not len(wrong), f"{what}: finite where it must not be, or not where it must be: {wrong[:4].tolist()}"


def _check_lse(case: Case, got: Array, answer: Answer, what: str) -> None:
    blind = ~answer.kept_keys.any(axis=2).T
    assert (got[blind] == -np.inf).all(), f"{what}: rows that see nothing must be -inf"
    _check_classes(what, got, answer.lse)
    finite = np.isfinite(answer.lse)
    error = np.abs(got[finite] - answer.lse[finite])
    bound = 1e-5 + _EXP2[case.arch] + 1e-6 * np.abs(answer.lse[finite]) + score_error(case, answer)[finite]
    assert (error <= bound).all(), f"{what}: error {error.max():.2e}, bound {bound[np.argmax(error / bound)]:.2e}"


def score_error(case: Case, answer: Answer) -> Array:
    """How far scores may be off, [len_q, Hq]: dot products, and with softcap the device's fast tanh."""
    error = answer.score_size * 2.0 ** -_sum_bits(case, answer) + 2.0**-20
    if case.softcap:
        error = error + np.minimum(answer.score_size, case.softcap) * 2.0**-10
    if case.alibi:
        error = error + 1e-5
    return np.asarray(error)


def _sum_bits(case: Case, answer: Answer) -> int:
    """Of products of 8 bits; a request that SM90 decodes has none."""
    return case.sum_bits if answer.rounded is not None else FLOAT32_BITS


def out_bound(case: Case, answer: Answer) -> Array:
    """Largest error that correct arithmetic can make: P and the output are rounded, and scores have an error.

    With 8-bit P it is measured from ``answer.rounded``: the rounding is known, but for values between two.
    """
    unit, tiny = _UNIT[case.dtype_out], _TINY[case.dtype_out]
    scores = 2.2 * score_error(case, answer)[:, :, None] + 2 * _EXP2[case.arch]
    if answer.rounded is not None and answer.flips is not None:
        reached = np.abs(answer.rounded) + answer.flips
        sums = 2.0 ** (2 - case.sum_bits) * answer.spread  # of P.V
        return np.asarray(answer.flips + (unit * 1.02 + scores) * reached + sums + tiny)
    relative = unit * 1.02 + scores + 2.0**-18
    # P below 2^-14 is subnormal. Its type is the output's, unless it has 8 bits, which is above.
    absolute = 2.0**-25 * answer.reach if case.dtype_out == "fp16" else 0.0
    return np.asarray(relative * answer.spread + unit * 1.02 * np.abs(answer.out) + absolute + tiny)


def same_precision(case: Case, one: Content, answer: Answer) -> Array:
    """The same attention over the kept keys, by PyTorch in the type of its operands; [len_q, Hq, Dv] float64."""
    if answer.rounded is not None:
        return _same_precision_e4m3(case, one, answer)
    rules = rules_of(case, one)
    # 8-bit operands are worth their true values, in the type of the output.
    dtype, true = DTYPES[case.dtype_out], {}
    for name, x in (("q", one.q), ("k", one.k), ("v", one.v)):
        values = one.descales.get(f"{name}_descale")
        unit = 1.0 if values is None else torch.from_numpy(values).repeat_interleave(x.shape[1] // len(values))[:, None]
        true[name] = (x.float() * unit).to(dtype)
    q = (true["q"] * torch.tensor(case.softmax_scale, dtype=dtype)).transpose(0, 1)
    s = _product(q, true["k"].permute(1, 2, 0))
    if case.softcap:
        s = torch.tanh(s / case.softcap) * case.softcap
    if rules.alibi is not None:
        len_q, len_k = s.shape[1:]
        distance = (torch.arange(len_q)[:, None] + len_k - len_q - torch.arange(len_k)[None, :]).abs()
        s = s - (torch.from_numpy(rules.alibi)[:, None, None] * distance).to(s.dtype)
    s = s.masked_fill(~torch.from_numpy(answer.kept_keys), float("-inf"))
    if rules.sinks is not None:
        sink = torch.from_numpy(rules.sinks).to(s.dtype)[:, None, None].expand(-1, s.shape[1], 1)
        s = torch.cat([s, sink], dim=2)
    p = torch.softmax(s, dim=2)[:, :, : len(one.k)]
    return np.asarray(_product(p, true["v"].transpose(0, 1)).transpose(0, 1).double().numpy())


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [Hq, rows, n] times b [Hkv, n, m], whose heads are shared: sums in float32, rounded once, as on a GPU."""
    grouped = a.reshape(len(b), len(a) // len(b) * a.shape[1], a.shape[2])
    # PyTorch's own product of fp16 takes twenty times as long on a CPU, and one with a strided matrix up to ten times.
    wide = torch.float32 if a.dtype == torch.float16 else a.dtype
    product = (grouped.to(wide) @ b.to(wide).contiguous()).to(a.dtype)
    return product.reshape(len(a), a.shape[1], b.shape[2])


def _same_precision_e4m3(case: Case, one: Content, answer: Answer) -> Array:
    """PyTorch with 8-bit operands and float32 sums, P rounded once from the row's maximum; the output as the case's."""
    rules, repeat = rules_of(case, one), case.heads_q // case.heads_kv
    if not len(one.k):
        return np.zeros_like(answer.out)
    scale = {name: torch.from_numpy(values)[:, None, None] for name, values in one.descales.items()}
    q = one.q.float().transpose(0, 1).unflatten(0, (-1, repeat)) * scale.get("q_descale", torch.ones(1))[..., None]
    k, v = (
        x.float().transpose(0, 1) * scale.get(name, 1.0) for name, x in (("k_descale", one.k), ("v_descale", one.v))
    )
    s = (q @ k.transpose(1, 2).unsqueeze(1)).flatten(0, 1) * case.softmax_scale
    if case.softcap:
        s = torch.tanh(s / case.softcap) * case.softcap
    if rules.alibi is not None:
        len_q, len_k = s.shape[1:]
        distance = (torch.arange(len_q)[:, None] + len_k - len_q - torch.arange(len_k)[None, :]).abs()
        s = s - torch.from_numpy(rules.alibi).float()[:, None, None] * distance
    s = s.masked_fill(~torch.from_numpy(answer.kept_keys), float("-inf"))
    top = s.amax(dim=2, keepdim=True)
    p = torch.exp(s - top)
    total = p.sum(dim=2, keepdim=True)
    if rules.sinks is not None:
        total = total + torch.exp(torch.from_numpy(rules.sinks).float()[:, None, None] - top)
    rounded = (p * FACTOR).to(DTYPES["e4m3"]).float() / FACTOR
    out = (rounded @ v.repeat_interleave(repeat, dim=0)) / total
    return np.asarray(out.to(DTYPES[case.dtype_out]).transpose(0, 1).double().numpy())


def check_untouched(result: Result) -> None:
    """Bytes of given outputs that belong to no row are as they were; rows that belong to one are all written."""
    case = result.built.case
    for name in ("out", "lse", "stats", "skip_map"):
        if name not in result.built.tensors:
            continue
        view = result.tensors[name]
        flat = whole(view).view(view.dtype)
        before = UNCOUNTED if name == "stats" else MAP_SENTINEL if name == "skip_map" else sentinel(flat.dtype)
        owned = torch.zeros(flat.shape, dtype=torch.bool)
        inside = owned.as_strided(view.size(), view.stride(), view.storage_offset())
        for index in range(len(case.lens)):
            if name in ("out", "lse"):
                rows_of(case, inside, index)[...] = True
            else:
                inside[...] = True
        assert bool((flat[~owned] == before).all()), f"{case.name}: wrote outside the elements of {name}"
        missed = int((flat[owned] == before).sum()) if name in ("out", "lse") else 0
        assert missed == 0, f"{case.name}: {missed} elements of {name} were not written"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's content as integers, so that NaN equals itself and -0 differs from 0."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def assert_same_bits(what: str, first: Result, second: Result, indices: list[tuple[int, int]] | None = None) -> None:
    """Output and lse bit for bit equal, request by request; ``indices`` pairs (index in first, index in second)."""
    pairs = [(index, index) for index in range(len(first.built.case.lens))] if indices is None else indices
    for name in ("out", "lse"):
        if name not in first.tensors or name not in second.tensors:
            continue
        for here, there in pairs:
            a, b = bits(first.rows(name, here)), bits(second.rows(name, there))
            differing = int((a != b).sum())
            assert differing == 0, f"{what}: {name} of request {here}: {differing} of {a.numel()} elements differ"
