"""What is not recognised is refused by name, and says what would be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from skimattn import ArgumentError
from skimattn.integrations.diffusers import restore, sparsify
from skimattn.integrations.diffusers._lengths import LastMask, key_lengths
from skimattn.sparse import SparseWarning

from .models import FAMILIES, model_of, output_of
from .pipelines import wan_pipeline

THRESHOLD = {"threshold": 0.02}


def refused(name: str, *words: str) -> Any:
    """The error of an argument, which must also say ``words``."""
    return pytest.raises(ArgumentError, match=f"(?s)^{name}: expected" + "".join(f".*{word}" for word in words))


def test_transformers_that_are_not_known() -> None:
    other = diffusers.HunyuanVideoFramepackTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1, rope_axes_dim=(4, 6, 6)
    )
    with refused("transformer", "one of WanTransformer3DModel, .*FluxTransformer2DModel", "Framepack"):
        sparsify(other, THRESHOLD)
    with refused("transformer", "before torch.compile", "OptimizedModule"):
        sparsify(torch.compile(model_of("wan")), THRESHOLD)
    with refused("transformer", "WanTransformer3DModel", "Linear"):
        sparsify(torch.nn.Linear(2, 2), THRESHOLD)


@pytest.mark.parametrize("target", [SimpleNamespace(components={"unet": torch.nn.Linear(2, 2)}), SimpleNamespace(), 3])
def test_targets_without_transformers(target: Any) -> None:
    with refused("target", "a transformer, or a pipeline that has one"):
        sparsify(target, THRESHOLD)
    with refused("target", "a transformer, or a pipeline that has one"):
        restore(target)


def test_components_that_a_pipeline_does_not_have() -> None:
    with refused("config.transformer_2", "components of the pipeline: transformer"):
        sparsify(wan_pipeline(None), {"transformer": THRESHOLD, "transformer_2": THRESHOLD})


def test_processors_that_are_not_known() -> None:
    model = model_of("flux")
    attn = model.transformer_blocks[0].attn
    attn.set_processor(FluxIPAdapterAttnProcessor(128, 32))
    with refused("transformer.transformer_blocks.0.attn.processor", "FluxAttnProcessor, as", "FluxIPAdapter"):
        sparsify(model, THRESHOLD)
    sparsify(model, {**THRESHOLD, "ignore": ["transformer_blocks.*"]})
    assert isinstance(attn.processor, FluxIPAdapterAttnProcessor), "what stays dense may be anything"
    pipe = wan_pipeline()
    pipe.transformer_2.blocks[1].attn1.set_processor(AttnProcessor2_0())
    with refused("transformer_2.blocks.1.attn1.processor", "WanAttnProcessor", "AttnProcessor2_0"):
        sparsify(pipe, THRESHOLD)


def test_a_release_whose_processors_take_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(self: Any, attn: Any, hidden_states: torch.Tensor, window: int = 0) -> None: ...

    monkeypatch.setattr(WanAttnProcessor, "__call__", changed)
    with refused(r"transformer.blocks.0.attn1.processor", "rotary_emb, as in releases", "hidden_states, window"):
        sparsify(model_of("wan"), THRESHOLD)


def test_a_release_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, "__version__", "0.35.2")
    with pytest.raises(ImportError, match=r"expected 0\.36 or later \(got 0\.35\.2\)"):
        sparsify(model_of("wan"), THRESHOLD)


def test_context_parallelism_before_and_after() -> None:
    model = model_of("wan")
    model.blocks[1].attn1.processor._parallel_config = SimpleNamespace()
    with refused("transformer.blocks.1.attn1.processor", "without context parallelism", "SimpleNamespace"):
        sparsify(model, THRESHOLD)
    model.blocks[1].attn1.processor._parallel_config = None
    sparsify(model, THRESHOLD)
    ours = model.blocks[1].attn1.processor
    assert ours._parallel_config is None
    ours._parallel_config = None
    with refused("parallel_config", "keys of several ranks", "restore"):  # as enable_parallelism does
        ours._parallel_config = SimpleNamespace()


def test_cross_attention_as_a_target() -> None:
    with refused("targets", "cross attention stays dense", r"\*attn2"):
        sparsify(model_of("wan"), {**THRESHOLD, "targets": ["*attn2"]})
    with pytest.warns(SparseWarning, match=r"patterns.\*attn2: no attention module"):
        sparsify(model_of("wan"), {"patterns": {"*attn2": THRESHOLD, "default": THRESHOLD}})


def test_nothing_to_skip() -> None:
    with refused("config", "a setting for at least one of 2 attention modules"):
        sparsify(model_of("wan"), {"patterns": {"*": {"enable": False}}})
    with refused("config", "model.config has no sparse_attention_config"):
        sparsify(model_of("wan"))


def test_float32_and_gradients() -> None:
    with refused("q", "bfloat16|bf16"):
        output_of(sparsify(model_of("wan", torch.float32), THRESHOLD), FAMILIES["wan"].inputs())
    model = sparsify(model_of("wan"), THRESHOLD)
    with torch.enable_grad(), refused("q", "no_grad"):
        output_of(model, FAMILIES["wan"].inputs())


def call(family: str, **arguments: Any) -> Any:
    """One attention module alone."""
    model = sparsify(model_of(family), THRESHOLD)
    states = torch.zeros(1, 12, 128, dtype=torch.bfloat16, device=model.device)
    return model.get_submodule(FAMILIES[family].places[-1])(hidden_states=states, **arguments)


def test_arguments_that_processors_do_not_compute_with() -> None:
    some = torch.ones(1, 1, 1, 12, dtype=torch.bool)
    assert call("wan").shape == call("flux").shape == (1, 12, 128)
    with refused("attention_mask", "None", r"\[1, 1, 1, 12\]"):
        call("wan", attention_mask=some)
    with refused("encoder_hidden_states", "None"):
        call("wan", encoder_hidden_states=some)
    with refused("attention_mask", "None"):
        call("flux", attention_mask=some)
    with refused("ip_hidden_states", "None", "list"):
        call("flux", ip_hidden_states=[some])
    with refused("ip_adapter_masks", "None"):
        call("flux", ip_adapter_masks=some)


def test_processors_are_made_anew_from_their_classes() -> None:
    # As diffusers does with those that an IP-Adapter leaves alone.
    model = sparsify(model_of("flux"), THRESHOLD)
    expected = output_of(model, FAMILIES["flux"].inputs())
    model.set_attn_processor({name: type(one)() for name, one in model.attn_processors.items()})
    assert torch.equal(output_of(model, FAMILIES["flux"].inputs()), expected)


def test_masks_that_are_no_padding_at_the_end() -> None:
    mask = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    assert key_lengths(mask, 2, 12) is None
    mask[1, ..., 9:] = False
    assert key_lengths(mask, 2, 12).tolist() == [12, 9]  # type: ignore[union-attr]
    for wrong in (mask.expand(2, 1, 12, 12), mask.float(), mask[:1]):
        with refused("attention_mask", r"bool \[2, 1, 1, 12\]"):
            key_lengths(wrong, 2, 12)
    mask[1, ..., 3] = False
    with refused("attention_mask", "keys in use before those that are not", "1 of 2 requests"):
        key_lengths(mask, 2, 12)


def test_masks_are_looked_at_again_when_they_have_changed() -> None:
    seen, mask = LastMask(), torch.ones(1, 1, 1, 12, dtype=torch.bool)
    assert seen.lengths(mask, 1, 12) is None
    mask[..., 7:] = False
    assert seen.lengths(mask, 1, 12).tolist() == [7]  # type: ignore[union-attr]
    assert seen.lengths(mask, 1, 12) is seen.lengths(mask, 1, 12)
    assert seen.lengths(mask[..., 2:], 1, 10).tolist() == [5]  # type: ignore[union-attr]
    with refused("attention_mask", r"bool \[1, 1, 1, 11\]"):
        seen.lengths(mask, 1, 11)
