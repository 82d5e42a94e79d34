"""Texts through a model: losses, stages, lengths, caches of prompts, dropped probability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from skimattn import Params, explain, launch
from skimattn.errors import ArgumentError
from skimattn.integrations.transformers import Loaded, Session, TextForward, _dropped, load
from skimattn.integrations.transformers._linear import quicken
from skimattn.integrations.transformers.running import prompt_length
from skimattn.sparse import dropped_mass
from skimattn.sparse.policy import PhaseRule

from .families import DEVICE, logits_of, model_of, tokens_of
from .folders import save_tiny
from .recording import policies

LENGTH, NEW = 300, 8
LONG = 600  # tokens from which on prompts skip too
SKIPS = {"prefill": PhaseRule(0.5, 0.0), "decode": PhaseRule(0.2, 0.0)}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return load(folder, device=DEVICE)


@pytest.fixture
def forwards(loaded: Loaded) -> Iterator[list[int]]:
    """Tokens of every forward."""
    seen: list[int] = []
    hook = loaded.model.register_forward_hook(
        lambda module, given, named, out: seen.append(given[0].shape[1]), with_kwargs=True
    )
    yield seen
    hook.remove()


def text(length: int = LENGTH, seed: int = 0) -> list[int]:
    found: list[int] = tokens_of(1, length, seed)[0].tolist()
    return found


def losses(model: transformers.PreTrainedModel, sample: list[int]) -> torch.Tensor:
    """Of each next token, with the attention of torch over the whole text."""
    tokens = torch.tensor([sample], device=DEVICE)
    logits = logits_of(model, "sdpa", tokens)[0, :-1].double()
    model.set_attn_implementation("skimattn")
    picked: torch.Tensor = logits.logsumexp(-1) - logits.gather(1, tokens[0, 1:, None])[:, 0]
    return picked


@pytest.mark.parametrize("chunk", [None, 90])
def test_losses_are_those_of_next_tokens(loaded: Loaded, chunk: int | None) -> None:
    wanted, forward = losses(loaded.model, text()), TextForward(loaded.model, new_tokens=NEW, chunk=chunk)
    assert forward(text(), "prefill").loss == pytest.approx(float(wanted.mean()), abs=0.003)
    assert forward(text(), "decode").loss == pytest.approx(float(wanted[-NEW:].mean()), abs=0.02)
    for cut in (0, NEW):
        assert abs(float(wanted[: LENGTH - 1 - cut].mean() - wanted[-NEW:].mean())) > 0.05, "they can be told apart"


def test_stages_and_lengths(loaded: Loaded, forwards: list[int]) -> None:
    forward = TextForward(loaded.model, new_tokens=NEW, chunk=90)
    with policies(loaded.model, SKIPS) as layers:  # type: ignore[arg-type]
        prefill = forward(text(), "prefill")
        assert forwards == [90, 90, 90, 30] and [layer.stages for layer in layers] == [["prefill"] * 4] * 2
        decode = forward(text(), "decode")
    assert layers[0].stages[4:] == ["prefill"] * 4 + ["decode"] * NEW
    assert forwards[4:] == [90, 90, 90, LENGTH - NEW - 1 - 270] + [1] * NEW
    assert decode.length == LENGTH - NEW - 1 + NEW // 2, "the keys in the middle of the steps"
    assert prefill.length == prompt_length(LENGTH, 90) and 180 < prefill.length < LENGTH
    assert prompt_length(LENGTH, None) == prompt_length(LENGTH, LENGTH) == LENGTH
    assert prompt_length(200, 100) == round((100 * 200**3) ** 0.25), "a quarter of the tiles is in the first chunk"


def test_prompts_are_computed_once_while_they_are_dense(loaded: Loaded, forwards: list[int]) -> None:
    forward, decoded = TextForward(loaded.model, new_tokens=NEW), {"decode": SKIPS["decode"]}
    dense = forward(text(LONG), "decode").loss
    with policies(loaded.model, decoded) as layers:  # type: ignore[arg-type]
        sparse = forward(text(LONG), "decode").loss
        assert [len(layer.calls) for layer in layers] == [NEW, NEW]
        fresh = TextForward(loaded.model, new_tokens=NEW)(text(LONG), "decode").loss
    assert forward(text(LONG), "decode").loss == dense != sparse == fresh
    prompt = LONG - NEW - 1
    assert forwards == [prompt, *[1] * NEW, *[1] * NEW, prompt, *[1] * NEW, *[1] * NEW]
    with policies(loaded.model, SKIPS):  # type: ignore[arg-type]
        assert forward(text(LONG), "decode").loss != sparse, "prompts that skip leave another cache"
    assert forwards[-NEW - 1] == prompt
    forward(text(LONG, seed=1), "decode")
    assert forwards[-NEW - 1] == prompt, "other texts have other caches"


def test_caches_that_are_too_large_are_not_kept(
    loaded: Loaded, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * 2 * 2 * 64 * 2 * (LENGTH - NEW - 1)  # k and v, layers, heads, columns, bytes
    for room, prompts in ((size - 1, 2), (size, 1)):
        monkeypatch.setattr("skimattn.integrations.transformers.running._KEPT_BYTES", room)
        forward = TextForward(loaded.model, new_tokens=NEW)
        forwards.clear()
        for _ in range(2):
            forward(text(), "decode")
        assert forwards.count(LENGTH - NEW - 1) == prompts


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_dropped_mass_is_what_the_map_says(loaded: Loaded, phase: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Params] = []

    def recorded(params: Params) -> Any:
        calls.append(params)
        return launch(params)

    monkeypatch.setattr(_dropped, "launch", recorded)
    forward = TextForward(loaded.model, new_tokens=2, dropped=True)
    with policies(loaded.model, {phase: SKIPS[phase]}):
        dropped = forward(text(LONG), phase).dropped
    assert loaded.model.config._attn_implementation == "skimattn"
    layers = ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert list(dropped) == layers
    skipping = [call for call in calls if call.skip_softmax_threshold is not None]
    assert len(skipping) == (2 if phase == "prefill" else 4)
    for index, layer in enumerate(layers):
        wanted = torch.stack([with_map(call) for call in skipping[index::2]]).mean(0)
        assert torch.allclose(torch.from_numpy(dropped[layer]), wanted, atol=2e-6) and wanted.max() > 1e-4


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_changed_outputs_are_what_projections_make_of_them(loaded: Loaded, phase: Any) -> None:
    """Of the first layer, whose input is the same dense: what comes into its projection, both ways, head by head."""
    layer = loaded.model.model.layers[0]
    sample, seen, inputs = text(LONG), list[torch.Tensor](), list[torch.Tensor]()
    rules = {phase: SKIPS[phase]}

    def run(*, dropped: bool) -> Any:
        with policies(loaded.model, rules):
            return TextForward(loaded.model, new_tokens=2, dropped=dropped)(sample, phase)

    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0].float())),
        layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0].float())),
    ]
    try:
        run(dropped=False)
        sparse, entered = (torch.cat(found, 1)[0] for found in (seen, inputs))
        seen.clear()
        rules.clear()
        run(dropped=False)
        dense = torch.cat(seen, 1)[0]
    finally:
        for hook in hooks:
            hook.remove()
    rows = slice(-2, None) if phase == "decode" else slice(None)  # a prompt of decode is dense
    rules[phase] = SKIPS[phase]
    changed = run(dropped=True).changed["model.layers.0.self_attn"]
    heads = len(changed)
    change = (sparse - dense)[rows].unflatten(-1, (heads, -1))
    weight = layer.self_attn.o_proj.weight.float().unflatten(-1, (heads, -1))
    for head in range(heads):
        squares = (change[:, head] @ weight[:, head].T).square().sum(-1)
        wanted = float((squares / entered[rows].square().sum(-1)).mean())
        assert changed[head] == pytest.approx(wanted, rel=0.02, abs=1e-9)
    assert changed.max() > 1e-5


def test_without_a_projection_or_an_input_squares_stand_alone() -> None:
    module, model = torch.nn.Module(), torch.nn.Module()
    model.attn = module
    lost, change = torch.tensor([[0.5, 0.0]]), torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])
    measured = _dropped.Dropped()
    measured.add(module, lost, change)
    assert measured.changes(model)["attn"].tolist() == [25.0, 1.0]
    module.o_proj = torch.nn.Linear(4, 1, bias=False)
    module.o_proj.weight.data = torch.tensor([[2.0, 0.0, 1.0, 1.0]])
    measured = _dropped.Dropped()
    for hidden in ([1.0, 1.0], [1000.0, 0.0]):  # a token that is huge counts no more than others
        measured.see_input(module, torch.tensor([hidden]))
        measured.add(module, lost, change)
    wanted = [(36 / 2 + 36e-6) / 2, (1 / 2 + 1e-6) / 2]
    assert measured.changes(model)["attn"].tolist() == pytest.approx(wanted)
    assert measured.means(model)["attn"].tolist() == [0.5, 0.0]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_that_cannot_be_read_are_not_taken(dtype: torch.dtype) -> None:
    module = torch.nn.Module()
    module.o_proj = torch.nn.Linear(4, 1, bias=False)
    assert _dropped.gram_of(module, 2, 2) is not None and _dropped.gram_of(module, 2, 4) is None
    module.o_proj.weight = torch.nn.Parameter(torch.ones(1, 4).to(dtype), requires_grad=False)
    assert _dropped.gram_of(module, 2, 2) is None


def with_map(call: Params) -> torch.Tensor:
    """What a call drops by head ``[Hq]``, from the tiles that it skips, in the mean over its rows."""
    heads, device, chosen = call.q.shape[2], call.q.device, explain(call)
    assert chosen.tile is not None and chosen.group_rows is not None
    shape = (1, heads, -(-call.q.shape[1] // chosen.group_rows), -(-call.k.shape[1] // chosen.tile[1]))
    stats = torch.zeros(1, heads, 2, dtype=torch.int64, device=device)
    skip_map = torch.zeros(shape, dtype=torch.uint8, device=device)
    again = replace(call, return_lse=False, stats=stats, skip_map=skip_map)
    launch(again)
    return dropped_mass(again)[0]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("most", [1024, 70])
def test_divergence_is_that_of_all_predictions(
    loaded: Loaded, phase: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skimattn.integrations.transformers._divergence.MOST", most)
    new = 4 if phase == "prefill" or most > LONG else 100
    forward = TextForward(loaded.model, new_tokens=new, divergence=True, chunk=90)
    with policies(loaded.model, {phase: SKIPS[phase]}):
        first, again = (forward(text(LONG), phase).divergence for _ in range(2))
        sparse = predictions(loaded.model, text(LONG), new if phase == "decode" else 0)
    dense = predictions(loaded.model, text(LONG), new if phase == "decode" else 0)
    every = -(-len(dense) // most)
    wanted = (dense.exp() * (dense - sparse)).sum(-1)[::every].mean()
    assert first == again == pytest.approx(float(wanted), rel=2e-3) and first > 1e-4
    assert forward(text(LONG), phase).divergence == 0, "of itself"
    assert every == (1 if most == 1024 else 9 if phase == "prefill" else 2)


def predictions(model: transformers.PreTrainedModel, sample: list[int], steps: int) -> torch.Tensor:
    """Log-probabilities of all next tokens, or of the last steps."""
    session = Session(model)
    rows = [*session.prompt(sample[: -steps - 1] if steps else sample, 90)]
    if steps:
        rows = [session.step(token)[None] for token in sample[-steps - 1 : -1]]
    return torch.cat(rows).double().log_softmax(-1)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda model: TextForward(model, new_tokens=0), "^new_tokens: expected 1 or more .got 0"),
        (lambda model: TextForward(model, chunk=0), "^chunk: expected 1 or more .got 0"),
        (lambda model: TextForward(model)([1], "prefill"), "^sample: expected at least 2 tokens in prefill .got 1"),
        (
            lambda model: TextForward(model)([1] * 33, "decode"),
            "^sample: expected at least 34 tokens in decode .got 33",
        ),
    ],
)
def test_refusals(loaded: Loaded, made: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        made(loaded.model)


def test_a_session_gives_the_logits_of_the_whole(loaded: Loaded) -> None:
    sample = text(40)
    whole = logits_of(loaded.model, "skimattn", torch.tensor([sample], device=DEVICE))[0]
    session = Session(loaded.model)
    rows = [*session.prompt(sample[:30], 16), *(session.step(token)[None] for token in sample[30:])]
    assert [len(one) for one in rows[:3]] == [16, 14, 1]
    assert (torch.cat(rows).float() - whole).abs().max().item() < 0.03 * whole.abs().max().item()
    last = next(Session(loaded.model).prompt(sample, last_only=True))
    assert len(last) == 1 and (last[0].float() - whole[-1]).abs().max().item() < 0.03 * whole.abs().max().item()


def test_linear_layers_in_float32_round_as_before() -> None:
    plain = model_of("llama").to("cpu")
    quick = transformers.LlamaForCausalLM(plain.config).to(torch.bfloat16)
    quick.load_state_dict(plain.state_dict())
    quicken(quick)
    layer, other = quick.model.layers[0].mlp.up_proj, plain.model.layers[0].mlp.up_proj
    for rows in (1, 64):
        x = torch.randn(rows, 64).bfloat16()
        exact = x.double() @ other.weight.double().T
        got = layer(x)
        assert got.dtype is torch.bfloat16
        assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all(), "one rounding"
        assert torch.equal(got, (x.float() @ other.weight.float().T).bfloat16()) or rows == 1
    assert set(quick.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "^model: expected a folder with a config.json or one .gguf file .got .* with neither"),
        (["a.gguf", "b.gguf"], "^model: expected a folder with .* .got .* with a.gguf, b.gguf"),
    ],
)
def test_folders_without_a_model(tmp_path: Path, files: list[str], words: str) -> None:
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(ArgumentError, match=words):
        load(tmp_path)
    with pytest.raises(ArgumentError, match=r"^model: expected a folder, a .gguf file or a name of the hub"):
        load(tmp_path / "nothing")
    with pytest.raises(ArgumentError, match=r"^dtype: expected bfloat16 or float16 .got float32"):
        load(tmp_path, dtype="float32")


def test_a_text_begins_as_the_tokenizer_has_it(tmp_path: Path) -> None:
    save_tiny(tmp_path, begins=True)
    found = load(tmp_path)
    assert found.beginning == [1] and found.encode("A") == found.encode("BA")[1:] and 1 not in found.encode("A")
