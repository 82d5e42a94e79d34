"""How ``skimattn eval`` starts engines of vLLM and counts their tiles, with a stand-in for vLLM."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from skimattn.errors import ArgumentError
from skimattn.sparse import SkipSoftmaxConfig
from skimattn.tools.evaluation import engines
from skimattn.tools.evaluation.running import ways_of

from .folders import save_tiny

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="NO LM-EVAL: it is installed with transformers 5.24 only"
)
CONFIG = {"fit": {"prefill": {"a": 10.0, "b": 6.0}, "decode": {"a": 2.0, "b": 6.0}}, "target_sparsity": 0.3}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_tiny(tmp_path)
    return tmp_path


class Started:
    """Stands for lm-eval's class for vLLM: keeps what it is given, and counts tiles when it is asked."""

    tiles: ClassVar[dict[str, tuple[int, int]]] = {}
    seen: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **given: Any) -> None:
        if given["max_model_len"] == 64:
            raise ValueError("too\n  short")
        self.seen.append(given)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[Started]:
    """vLLM as far as an evaluation sees it; the real one was tried by hand."""
    from skimattn.integrations import vllm as ours

    monkeypatch.setattr(ours, "register", lambda: None)
    monkeypatch.setattr(ours, "tiles", lambda: dict(Started.tiles))
    monkeypatch.setattr(engines, "_SETTLE", 0.0)
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", SimpleNamespace(VLLM=Started))
    cleaned = SimpleNamespace(cleanup_dist_env_and_memory=lambda: None)
    monkeypatch.setitem(sys.modules, "vllm.distributed", cleaned)
    monkeypatch.setattr(Started, "seen", [])
    return Started


def test_each_way_is_an_engine_of_vllm(vllm: type[Started], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.VllmEngine(str(model), "bfloat16", 512, {"enforce_eager": True})
    monkeypatch.setattr(Started, "tiles", {"prefill": (10, 4)})  # of engines before it
    way = ways_of(SkipSoftmaxConfig.read(CONFIG), (0.6,))[1]
    counted = []
    for config in (None, way.config):
        with engine.running(config) as running:
            monkeypatch.setattr(Started, "tiles", {"prefill": (110, 54), "decode": (7, 1)})
            counted.append(running.tiles())
    nothing = {"prefill": (0, 0), "decode": (0, 0)}  # the second engine began where the first one ended
    assert counted == [{"prefill": (100, 50), "decode": (7, 1)}, nothing]
    dense, sparse = (given["additional_config"]["skimattn"]["config"] for given in vllm.seen)
    assert dense is False and SkipSoftmaxConfig.read(sparse) == way.config
    for given in vllm.seen:
        assert given["attention_config"] == {"backend": "CUSTOM"} and given["enforce_eager"]
        assert given["pretrained"] == str(model) and given["max_model_len"] == 512


def test_engines_that_do_not_start_are_refused(vllm: type[Started], model: Path) -> None:
    with pytest.raises(ArgumentError, match=r"engine: expected arguments beside those .* \(got attention_config\)"):
        engines.VllmEngine(str(model), "bfloat16", None, {"attention_config": {}})
    engine = engines.VllmEngine(str(model), "bfloat16", 64, {})
    with (
        pytest.raises(ArgumentError, match=r"engine: expected arguments and a model that vLLM .* \(got too short\)"),
        engine.running(None),
    ):
        pass
