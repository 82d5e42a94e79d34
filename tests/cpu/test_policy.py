"""Rules of a layer: thresholds by stage, head and length."""

from __future__ import annotations

import copy

import pytest
import torch
from skimattn import ArgumentError
from skimattn.sparse.policy import LayerPolicy, PhaseRule, attach_policy, policy_of


def test_one_factor_and_one_length_give_a_number() -> None:
    assert PhaseRule(40.0).threshold(4000) == 0.01
    assert PhaseRule(0.3, 0.0).threshold(4000) == 0.3
    assert PhaseRule(8.0, 0.5).threshold(400) == pytest.approx(0.4)
    assert PhaseRule(40.0).threshold(40) == 0.0, "1 or more is dense"


def test_lengths_on_a_device_and_heads_give_tensors() -> None:
    lengths = torch.tensor([100, 4000], dtype=torch.int32)
    assert PhaseRule(40.0).threshold(lengths).tolist() == pytest.approx([0.4, 0.01])  # type: ignore[union-attr]
    by_head = PhaseRule((40.0, 200.0)).threshold(lengths)
    assert isinstance(by_head, torch.Tensor) and by_head.dtype == torch.float32
    assert by_head.tolist() == [pytest.approx([0.4, 0.0]), pytest.approx([0.01, 0.05])]
    assert PhaseRule((40.0, 200.0)).threshold(4000).tolist() == [pytest.approx([0.01, 0.05])]  # type: ignore[union-attr]


def test_factors_are_copied_to_a_device_once() -> None:
    rule = PhaseRule((40.0, 200.0))
    rule.prepare("cpu")
    assert rule._by_head("cpu") is rule._by_head(torch.device("cpu")), "a CUDA graph cannot hold a copy from the host"
    assert rule == PhaseRule((40.0, 200.0)) and copy.deepcopy(rule) == rule


@pytest.mark.parametrize(
    ("factor", "power", "name"),
    [(float("nan"), 1.0, "factor"), ((), 1.0, "factor"), (-1.0, 1.0, "factor"), (1.0, -1.0, "length_power")],
)
def test_what_means_nothing_is_refused_by_name(factor: float | tuple[float, ...], power: float, name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: expected"):
        PhaseRule(factor, power)


def test_a_disabled_policy_is_dense_and_policies_stay_out_of_state_dicts() -> None:
    module = torch.nn.Linear(2, 2)
    before = set(module.state_dict())
    policy = LayerPolicy({"prefill": PhaseRule(1.0)})
    attach_policy(module, policy)
    assert policy_of(copy.deepcopy(module)) == policy and set(module.state_dict()) == before
    assert policy.rule("prefill") == PhaseRule(1.0) and policy.rule("decode") is None
    policy.enabled = False
    assert policy.rule("prefill") is None
    attach_policy(module, None)
    assert policy_of(module) is None
