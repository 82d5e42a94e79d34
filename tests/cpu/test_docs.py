"""Guides are true: their code runs as it stands, and so do their commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn.sparse import attention_modules, policy_of

from tests.helpers.guides import GUIDES, OF_ENGINES, run_guide, without_engine
from tests.helpers.sparse_models import GapModel
from tests.helpers.standin import ROOT


class Model(GapModel):
    """Counts as a model does that runs on our kernels."""

    def forward(self, sample: Any, phase: str = "prefill", offset: float = 0.0) -> Any:
        for module in attention_modules(self).values():
            policy = policy_of(module)
            counts = policy and policy.collector and policy.collector.counts("prefill", 1, 2, torch.device("cpu"))
            assert counts is not None
            counts += torch.tensor([len(sample), 1])


@pytest.mark.parametrize("guide", without_engine(), ids=lambda guide: guide.name)
def test_code_and_commands_run(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": Model([8.0, 9.0]), "prompts": [[1] * 10, [2] * 20]}
    run_guide(guide, names)
    assert (tmp_path / "stats.summary.json").exists() and (tmp_path / "stats.png").exists()


def test_guides_have_no_dead_links() -> None:
    for guide in GUIDES:
        for target in re.findall(r"\]\((?!https://)([^)]+)\)", guide.read_text(encoding="utf-8")):
            assert (guide.parent / target).exists(), target


def test_guides_that_need_an_engine_are_run_with_it() -> None:
    for engine, names in OF_ENGINES.items():
        assert (ROOT / "tests/engines" / engine / "test_guides.py").exists()
        assert set(names) <= {guide.name for guide in GUIDES}
