"""Without skipping our processors compute what diffusers' own do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimattn import Params, launch
from skimattn.integrations.diffusers import _attention, sparsify
from skimattn.sparse import disable, set_step

from tests.helpers.rounding import Truth

from .models import FAMILIES, hunyuan_inputs, model_of, output_of, outputs_of

ALL = sorted(FAMILIES)
THRESHOLD = {"threshold": 0.01}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Params]:
    """All calls that attention makes, in order."""
    calls: list[Params] = []

    def recorded(params: Params) -> Any:
        calls.append(params)
        return launch(params)

    monkeypatch.setattr(_attention, "launch", recorded)
    return calls


Outputs = dict[str, torch.Tensor]


def results_of(model: Any, family: str, inputs: dict[str, Any]) -> Outputs:
    """The sample, and what each attention module gives in rows that are in use."""
    with outputs_of(model, family) as found:
        results = {"sample": output_of(model, inputs)}
    texts = inputs.get("encoder_attention_mask")
    for place, parts in found.items():
        assert all(torch.isfinite(part).all() for part in parts), "rows of padding are finite too"
        if texts is not None:
            parts[1] = parts[1][texts.bool()]
        results |= {f"{place}.{index}": part for index, part in enumerate(parts)}
    return results


def truths_of(family: str, inputs: dict[str, Any], fuse: bool = False, **changes: Any) -> tuple[dict[str, Truth], Any]:
    """What diffusers' own attention gives in float32, and a model in bf16."""
    exact = results_of(model_of(family, torch.float32, **changes), family, inputs)
    model = model_of(family, **changes)
    if fuse:
        model.fuse_qkv_projections()
    own = results_of(model, family, inputs)
    return {name: Truth.of(exact[name], own[name]) for name in own}, model


def check_dense(
    family: str, launched: list[Params], truths: dict[str, Truth], model: Any, inputs: dict[str, Any]
) -> None:
    sparsify(model, THRESHOLD)
    disable(model)
    for name, got in results_of(model, family, inputs).items():
        truths[name].check(got)
    assert len(launched) == len(FAMILIES[family].places), "each of the places, and cross attention elsewhere"
    assert all(call.skip_softmax_threshold is None for call in launched)


@pytest.mark.parametrize("family", ALL)
def test_dense_layers_compute_what_the_models_own_do(family: str, launched: list[Params]) -> None:
    inputs = FAMILIES[family].inputs()
    check_dense(family, launched, *truths_of(family, inputs), inputs)


@pytest.mark.parametrize("family", ["wan", "flux"])
def test_fused_projections(family: str, launched: list[Params]) -> None:
    inputs = FAMILIES[family].inputs()
    truths, model = truths_of(family, inputs, fuse=True)
    for place in FAMILIES[family].places:
        model.get_submodule(place).to_q = None  # nobody needs it any more
    check_dense(family, launched, truths, model, inputs)


@pytest.mark.parametrize("changes", [{"image_condition_type": "token_replace"}, {"guidance_embeds": False}])
def test_other_forms_of_hunyuan_video(changes: dict[str, Any], launched: list[Params]) -> None:
    inputs = hunyuan_inputs((40, 40))
    check_dense("hunyuan", launched, *truths_of("hunyuan", inputs, **changes), inputs)
    assert all(call.seqused_k is None for call in launched), "nothing is padded"


def test_a_threshold_of_zero_is_dense_to_the_bit() -> None:
    model, inputs = model_of("wan"), FAMILIES["wan"].inputs()
    sparsify(model, {"threshold": 0.0})
    dense = output_of(model, inputs)
    disable(model)
    assert torch.equal(output_of(model, inputs), dense)


def test_padded_text_becomes_lengths(launched: list[Params]) -> None:
    model, inputs = model_of("hunyuan"), hunyuan_inputs((40, 13))
    sparsify(model, THRESHOLD)
    output_of(model, inputs)
    for call in launched:
        assert call.seqused_k is not None and call.seqused_k.tolist() == [680, 653]
        assert call.seqused_q is call.seqused_k


@pytest.mark.parametrize(("family", "changes"), [("wan", {"num_layers": 1}), ("hunyuan", {"num_layers": 0})])
def test_compiled_whole(family: str, changes: dict[str, Any]) -> None:
    model, inputs = model_of(family, **changes), FAMILIES[family].inputs()
    sparsify(model, {"scale_factor": 20.0, "initial_disabled_steps": 1})
    eager = []
    for step in (0, 1):
        set_step(model, step)
        eager.append(output_of(model, inputs))
    model.compile(fullgraph=True, backend="eager")
    for step in (0, 1) if family == "wan" else (1,):
        set_step(model, step)
        assert torch.equal(output_of(model, inputs), eager[step])
    assert not torch.equal(*eager)
    torch.compiler.reset()
