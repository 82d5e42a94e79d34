"""Custom masks over the last keys only: what they mean, beside whole masks and beside calls without any, and refusals.

The named cases (``custom-last*``, ``tree-*``) compare them with the oracle, and mutations show that these notice.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimattn import ArgumentError, Params, attention, launch, pack_mask
from skimattn.codegen.spec import KernelSpec

from tests.emulator import EmulatedKernel, compile_kernel
from tests.helpers.cases import Case, Content, contents, rules_of
from tests.helpers.check import check
from tests.helpers.decode_properties import same_answers
from tests.helpers.fake_driver import FakeDriver, install, on_gpu, small_call
from tests.helpers.oracle import custom_seen
from tests.helpers.properties import Target
from tests.helpers.run import run_case
from tests.helpers.wrong_calls import Wrong, batched, paged, ragged, refuse_case, wrong

TARGETS = [Target("reference"), Target("emulator"), Target("emulator", "sm100")]
on_each = pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.backend}-{target.arch}")
PREFILL = Case(
    "last-prefill",
    mask="custom",
    custom="bool3",
    custom_keys=77,
    heads_q=4,
    heads_kv=2,
    lens=((70, 700), (70, 301), (70, 40)),
    seqused=True,
    pattern="random",
)
DECODE = replace(PREFILL, name="last-decode", phase="decode", lens=((8, 2300), (8, 301), (8, 40)))


def whole(case: Case, held: list[Content]) -> tuple[Case, list[Content]]:
    """The same call with a mask over all keys."""
    masks = [custom_seen(rules_of(case), one.custom, len(one.k)) for one in held if one.custom is not None]
    return replace(case, custom_keys=0), [replace(one, custom=mask) for one, mask in zip(held, masks, strict=True)]


@on_each
@pytest.mark.parametrize("base", [PREFILL, DECODE], ids=lambda case: case.name)
@pytest.mark.parametrize("columns", [1, 31, 64, 77, 160, 700])
def test_the_bits_are_those_of_the_same_mask_over_all_keys(base: Case, columns: int, target: Target) -> None:
    """Wherever column 0 lies inside words and tiles: outputs, counts and maps."""
    case = target.of(replace(base, custom_keys=columns))
    held = contents(case)
    one, _ = run_case(case, target.backend, held)
    twin, its = whole(case, held)
    other, _ = run_case(twin, target.backend, its)
    same_answers(f"{columns} columns and all", one, other)


@on_each
@pytest.mark.parametrize("base", [PREFILL, DECODE], ids=lambda case: case.name)
def test_hidden_keys_may_hold_nan_as_under_a_mask_over_all_keys(base: Case, target: Target) -> None:
    case = target.of(replace(base, lens=((8, 700), (8, 301))))
    held = [one.clone() for one in contents(case)]
    for one in held:
        assert one.custom is not None
        one.custom[:, :, [3, 40, 76]] = False
        one.k[[len(one.k) - 77 + column for column in (3, 40, 76)]] = math.nan
    result, _ = run_case(case, target.backend, held)
    assert all(np.isfinite(answer.out).all() for answer in check(result, held))
    for one in held:
        one.v[len(one.k) - 77 + 40] = math.nan
    here, _ = run_case(case, target.backend, held)
    twin, its = whole(case, held)
    there, _ = run_case(twin, target.backend, its)
    assert bool(here.tensors["out"].isnan().any())
    assert torch.equal(here.tensors["out"].isnan(), there.tensors["out"].isnan())


# A draft tree: the parent of each token, -1 = the last key of the cache.
PARENTS = (-1, 0, 0, 1, 1, 2, 3, 5)


def ancestors(token: int) -> list[int]:
    """A token and those before it on its path."""
    return [] if token < 0 else [*ancestors(PARENTS[token]), token]


def tree_mask() -> NDArray[np.bool_]:
    """[tokens, tokens]: each token sees its path."""
    mask = np.zeros((len(PARENTS), len(PARENTS)), dtype=bool)
    for token in range(len(PARENTS)):
        mask[token, ancestors(token)] = True
    return mask


@on_each
def test_a_draft_tree_over_a_paged_cache(target: Target) -> None:
    """Every token gets what it would as the last one of a sequence: the cache, its ancestors, itself."""
    tokens, cached = len(PARENTS), (0, 5, 117, 1203)
    case = Case(
        "tree",
        phase="decode",
        mask="custom",
        custom="packed2",
        custom_keys=tokens,
        kv_layout="nhd",
        page_size=16,
        heads_q=4,
        heads_kv=2,
        lens=tuple((tokens, keys + tokens) for keys in cached),
        skip="dense",
        pattern="none",
    )
    case = target.of(case)
    mask = np.repeat(tree_mask()[None], case.heads_q, axis=0)
    held = [replace(one, custom=mask) for one in contents(case)]
    result, _ = run_case(case, target.backend, held)
    check(result, held)
    for index, (one, keys) in enumerate(zip(held, cached, strict=True)):
        for token in range(tokens):
            path = [*range(keys), *(keys + ancestor for ancestor in ancestors(token))]
            k, v = (x[path].double().repeat_interleave(2, dim=1) for x in (one.k, one.v))
            weights = torch.softmax(torch.einsum("hd,khd->hk", one.q[token].double(), k) * case.softmax_scale, dim=1)
            wanted = torch.einsum("hk,khd->hd", weights, v)
            torch.testing.assert_close(result.rows("out", index)[token].double(), wanted, atol=2e-2, rtol=2e-2)


_FAR, _CLEAN = "if (index < 0) return ~0u;", "imax(first_masked_key(len_k, p), 0) / kTileN"


@pytest.mark.parametrize("arch", ["sm90", "sm100"])
def test_tiles_before_the_mask_do_not_ask_it(arch: str) -> None:
    """In kernels whose masks hide what lies more than a tile before them: nobody notices, unless all tiles ask."""

    def compiled(spec: KernelSpec, *, all_ask: bool) -> EmulatedKernel:
        def patch(header: str, text: str) -> str:
            text = text.replace(_FAR, "if (index < 0) return index < -4 ? 0u : ~0u;")
            return text.replace(_CLEAN, "0") if all_ask else text

        return compile_kernel(spec, source_override=patch)

    case = Target("emulator", arch).of(replace(DECODE, skip="dense"))
    check(*run_case(case, "emulator", compiled=partial(compiled, all_ask=False)))
    with pytest.raises(AssertionError, match=r"last-decode\[0\] out"):
        check(*run_case(case, "emulator", compiled=partial(compiled, all_ask=True)))


def call(**arguments: Any) -> Params:
    """A call on CPU tensors: 2 requests of 5 rows, 40 keys, 4 heads on 2."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(2, rows, heads, 64, generator=generator) for rows, heads in ((5, 4), (40, 2), (40, 2))]
    return Params(*(tensor.bfloat16() for tensor in tensors), mask="custom", **arguments)


@pytest.mark.parametrize("shape", [(5, 5), (2, 5, 5), (2, 1, 5, 5), (1, 4, 5, 5), (2, 4, 5, 5)])
@pytest.mark.parametrize("packed", [False, True])
def test_every_shape_means_its_last_keys(shape: tuple[int, ...], packed: bool) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5
    out = launch(call(custom_mask=pack_mask(mask) if packed else mask, custom_mask_keys=5))
    seen = torch.nn.functional.pad(mask, (35, 0), value=True)
    wanted = launch(call(custom_mask=seen))
    assert isinstance(out, torch.Tensor) and isinstance(wanted, torch.Tensor) and torch.equal(out, wanted)


def test_a_causal_tree_is_a_causal_mask() -> None:
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    lengths = torch.tensor([40, 3], dtype=torch.int32)
    both = (
        call(custom_mask=mask, custom_mask_keys=5, seqused_k=lengths),
        replace(call(seqused_k=lengths), mask="causal"),
    )
    out, wanted = map(launch, both)
    assert isinstance(out, torch.Tensor) and isinstance(wanted, torch.Tensor) and torch.equal(out, wanted)


def test_a_mask_over_more_keys_than_any_request_has() -> None:
    mask = torch.rand(2, 5, 90, generator=torch.Generator().manual_seed(3)) < 0.5
    out, wanted = launch(call(custom_mask=mask, custom_mask_keys=90)), launch(call(custom_mask=mask[..., 50:]))
    assert isinstance(out, torch.Tensor) and isinstance(wanted, torch.Tensor) and torch.equal(out, wanted)


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_calls(packed: bool) -> None:
    mask = torch.ones(2, 5, 5, dtype=torch.bool).tril()
    mask = pack_mask(mask) if packed else mask
    params = call()
    torch._dynamo.reset()

    def step(keys: int) -> Any:
        given = {"custom_mask": mask, "custom_mask_keys": keys}
        return attention(params.q, params.k, params.v, mask="custom", **given)

    traced = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(traced(5), step(5))
    torch._dynamo.reset()


def test_what_reaches_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: FakeDriver = install(monkeypatch)
    packed = on_gpu(torch.zeros(70, 40, dtype=torch.uint8))
    for keys in (9, 33, None, 9):
        launch(small_call(mask="custom", custom_mask=packed, custom_mask_keys=keys))
    assert [sent.block.custom_keys for sent in fake.launches] == [9, 33, 0, 9]
    for keys in (True, 9.0):
        with pytest.raises(ArgumentError, match=r"^custom_mask_keys: expected an int \(got"):
            launch(small_call(mask="custom", custom_mask=packed, custom_mask_keys=keys))
    with pytest.raises(ArgumentError, match=r"^custom_mask_keys: expected None with mask 'causal'"):
        launch(small_call(custom_mask_keys=9))
    assert len(fake.launches) == 4


def bools(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def last(name: str, base: Any, argument: str, wanted: str, got: str, mask: torch.Tensor, keys: Any) -> Wrong:
    return wrong(name, base, argument, wanted, got, mask="custom", custom_mask=mask, custom_mask_keys=keys)


WRONG = [
    wrong("unused", batched, "custom_mask_keys", "None with mask 'full'", "8", custom_mask_keys=8),
    wrong("no_mask", batched, "custom_mask", "since mask is 'custom'", "None", mask="custom", custom_mask_keys=8),
    last("zero", batched, "custom_mask_keys", "an int from 1 to", "0", bools(70, 0), 0),
    last("negative", batched, "custom_mask_keys", "an int from 1 to", "-1", bools(70, 1), -1),
    last("huge", batched, "custom_mask_keys", "to 1073741823", "1073741824", bools(70, 8), 1 << 30),
    last("bool", batched, "custom_mask_keys", "an int", "True", bools(70, 1), True),
    last("float", batched, "custom_mask_keys", "an int", "float 8.0", bools(70, 8), 8.0),
    last("narrow", batched, "custom_mask", "8 columns for custom_mask_keys=8", r"\[70, 7\]", bools(70, 7), 8),
    last("wide", batched, "custom_mask", "8 columns for custom_mask_keys=8", r"\[70, 9\]", bools(70, 9), 8),
    last("whole", paged, "custom_mask", "8 columns for custom", r"\[70, 128\]", bools(70, 128), 8),
    last("rows", ragged, "custom_mask", r"\[70, custom_mask_keys\] or \[4, 70, custom", r"\[69, 8\]", bools(69, 8), 8),
    last(
        "bytes",
        paged,
        "custom_mask",
        "at least 8 bytes a row for custom_mask_keys=33",
        r"\[70, 4\]",
        torch.zeros(70, 4, dtype=torch.uint8),
        33,
    ),
    last(
        "unsaid",
        batched,
        "custom_mask",
        "200 columns for 200 keys; of .* custom_mask_keys says n",
        r"\[70, 8\]",
        bools(70, 8),
        None,
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_refusals(case: Wrong) -> None:
    refuse_case(case)
