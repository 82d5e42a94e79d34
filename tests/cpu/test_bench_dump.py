"""``bench dump`` on a fake of transformers: what is taken and refused, and the file. The real one: tests/engines."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bench import dump, qkv_file

ROWS = 40


class FakeAttention:
    """A layer that hands random tensors to whichever attention is set, with what its class says beside them."""

    def __init__(self, number: int, model: FakeModel, **options: Any) -> None:
        self.layer_idx, self.is_causal, self._model = number, options.pop("causal", True), model
        self.config = SimpleNamespace(layer_types=options.pop("layer_types", None))
        self._options = {"scaling": 64**-0.5, "dropout": 0.0, "sliding_window": None, "s_aux": None} | options
        torch.manual_seed(number)
        self.qkv = [torch.randn(1, heads, ROWS, 64).bfloat16() for heads in (4, 2, 2)]

    def __call__(self) -> Any:
        return self._model.registry[self._model.config._attn_implementation](self, *self.qkv, None, **self._options)


class FakeModel:
    device = "cpu"

    def __init__(self, registry: dict[str, Any], **options: Any) -> None:
        self.registry, self.config = registry, SimpleNamespace(_attn_implementation="sdpa")
        self.layers = [FakeAttention(0, self), FakeAttention(3, self, **{"sliding_window": 16, **options})]

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name

    def get_decoder(self) -> Any:
        return self.forward

    def forward(self, tokens: torch.Tensor, use_cache: bool) -> None:
        assert not use_cache and tokens.shape == (1, ROWS)
        self.outputs = [layer() for layer in self.layers]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """transformers, as far as a dump uses it; the attention functions that it knows."""
    functions: dict[str, Any] = {"sdpa": lambda module, q, k, v, mask, **options: (q + 1, None)}
    masks: dict[str, Any] = {"sdpa": "makes masks"}
    package = ModuleType("transformers")
    package.AttentionInterface = SimpleNamespace(register=functions.__setitem__)  # type: ignore[attr-defined]
    package.AttentionMaskInterface = SimpleNamespace(register=masks.__setitem__)  # type: ignore[attr-defined]
    for name, held in (
        ("modeling_utils", "ALL_ATTENTION_FUNCTIONS"),
        ("masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS"),
    ):
        module = ModuleType(f"transformers.{name}")
        setattr(module, held, functions if name == "modeling_utils" else masks)
        monkeypatch.setitem(sys.modules, f"transformers.{name}", module)
    monkeypatch.setitem(sys.modules, "transformers", package)
    functions["masks"] = masks
    return functions


def tokens() -> torch.Tensor:
    return torch.zeros(1, ROWS, dtype=torch.int64)


def test_what_attention_is_given_is_taken(registry: dict[str, Any]) -> None:
    model = FakeModel(registry)
    found = dump.taken(model, tokens())
    assert [*found.tensors] == [0, 3] and found.windows == {0: 0, 3: 16}
    for layer, (out, _) in zip(model.layers, model.outputs, strict=True):
        for given, held in zip(layer.qkv, found.tensors[layer.layer_idx], strict=True):
            assert torch.equal(held, given[0].transpose(0, 1)) and held.is_contiguous()
        assert torch.equal(out, layer.qkv[0] + 1), "sdpa computes"
    assert model.config._attn_implementation == "sdpa" and len({*registry["masks"].values()}) == 1
    assert [*dump.taken(model, tokens(), [3]).tensors] == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": 0.5}, "layer 3: scaling: expected head_dim \\*\\* -0.5, 0.125 \\(got 0.5\\)"),
        ({"causal": False}, "layer 3: mask: expected a causal one"),
        ({"is_causal": False}, "layer 3: mask: expected a causal one"),
        ({"softcap": 30.0}, "layer 3: softcap: expected none \\(got 30.0\\)"),
        (
            {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]},
            "layer_types: expected one of full_attention",
        ),
        ({"s_aux": torch.zeros(4)}, "layer 3: s_aux: expected none"),
    ],
)
def test_what_a_file_cannot_say_is_refused(registry: dict[str, Any], options: dict[str, Any], message: str) -> None:
    model = FakeModel(registry, **options)
    with pytest.raises(ValueError, match=message):
        dump.taken(model, tokens())
    assert model.config._attn_implementation == "sdpa", "left as it was"
    assert [*dump.taken(model, tokens(), [0]).tensors] == [0], "layers that are not wanted may be anything"


def test_the_command_writes_a_file(
    registry: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tokenizer(text: str, return_tensors: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.arange(len(text))[None])

    monkeypatch.setattr(dump, "load", lambda path: (FakeModel(registry), tokenizer))
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("x" * (ROWS + 5))
    arguments = ["models/toy.gguf", "text", "--tokens", str(ROWS), "--out", "toy.pt"]
    assert dump.main(arguments) == 0
    assert (
        "layers 3: Kind(rows=40, heads_q=4, heads_kv=2, head_dim=64, dtype='bf16', window=16)"
        in capsys.readouterr().out
    )
    full, window = qkv_file.layers_of(Path("toy.pt"))
    assert (full.model, full.numbers, window.numbers) == ("toy", (0,), (3,))
    wanted = FakeModel(registry).layers[1].qkv
    for held, given in zip(window.read(3, "cpu"), wanted, strict=True):
        assert torch.equal(held, given[0].transpose(0, 1))
    for more, message in (
        (["--tokens", "99"], "text: expected a text of at least 99 tokens (got 45)"),
        (["--layers", "7"], "--layers: expected numbers of layers of the model (got [7])"),
        (["--out", "toy.bin"], "toy.bin: expected a name that ends in .safetensors or .pt (got '.bin')"),
    ):
        assert dump.main([*arguments, *more]) == 1 and message in capsys.readouterr().err


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of a model or a GGUF file"):
        dump.load(tmp_path / "none.gguf")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="transformers: expected to be installed"):
        dump.load(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    q = torch.zeros(8, 1, 64).bfloat16()
    with pytest.raises(ValueError, match=r"safetensors.torch: expected to be installed for .safetensors"):
        qkv_file.write(tmp_path / "x.safetensors", {0: (q, q, q)}, {}, "toy", "text")


def test_files_that_are_none_of_ours(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected a file of bench dump, format 1 \\(got None\\)"):
        qkv_file.layers_of(tmp_path / "other.pt")
    q, k = torch.zeros(8, 2, 64).bfloat16(), torch.zeros(8, 1, 64).bfloat16()
    with pytest.raises(ValueError, match="v: expected k and v of 8 keys and 64 columns"):
        qkv_file.kind_of((q, k, k[:4]), 0)
    with pytest.raises(ValueError, match="dtype: expected bf16 or fp16 of q, k and v"):
        qkv_file.kind_of((q, k, k.float()), 0)
