"""Calibration against models whose tiles and losses are known by formula."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimattn import ArgumentError
from skimattn.sparse import SparseWarning, TileCounts, attention_modules, policy_of, sparsify, summary
from skimattn.sparse.calibration.calibrate import Quality, calibrate
from skimattn.sparse.calibration.choose import choose
from skimattn.sparse.calibration.isotonic import rising
from skimattn.sparse.calibration.profile import Profile, Unit
from skimattn.sparse.calibration.runner import ModelRunner, Outcome, Run
from skimattn.sparse.config.export import section_of

from tests.helpers.sparse_models import GapModel, ToyModel

LAYER = "layers.{}.self_attn".format


def texts(*lengths: int) -> list[list[int]]:
    return [[index, *range(length - 1)] for index, length in enumerate(lengths)]


def loss_of(model: GapModel) -> Any:
    return lambda sample, phase: model(sample, phase)[0]


def dropped_of(model: GapModel) -> Any:
    def forward(sample: Any, phase: Any) -> Outcome:
        masses = {name: np.array(mass) for name, mass in model(sample, phase)[1].items()}
        return Outcome(dropped=masses)

    return forward


def changed_of(model: GapModel) -> Any:
    def forward(sample: Any, phase: Any) -> Outcome:
        return Outcome(changed=dropped_of(model)(sample, phase).dropped)

    return forward


def divergence_of(model: GapModel) -> Any:
    return lambda sample, phase: Outcome(divergence=model(sample, phase)[0] - 2)


def skipped(model: GapModel, config: Any, length: int, phase: str = "prefill") -> float:
    """What the model really skips under a configuration."""
    sparsify(model, config)
    for module in attention_modules(model).values():
        policy = policy_of(module)
        assert policy is not None
        policy.collector = TileCounts(by_head=True)
    model(texts(length)[0], phase)
    share = summary(model).sparsity(phase)  # type: ignore[arg-type]
    return share or 0.0


@pytest.mark.parametrize("power", [1.0, 1.8])
@pytest.mark.parametrize("target", [0.3, 0.6])
def test_the_target_is_reached_at_lengths_that_were_not_tried(power: float, target: float) -> None:
    model = GapModel([9.0] * 3, power=power)
    found = calibrate(model, texts(1000, 2000, 4000), target, forward=loss_of(model), progress=False)
    fit = found.config.fit["prefill"]
    assert fit.b == pytest.approx(9.0, rel=0.01) and fit.length_power == pytest.approx(power, abs=0.01)
    for length in (1500, 3000, 8000):
        assert skipped(model, found.config, length) == pytest.approx(target, abs=0.01)
        assert skipped(model, found.config, length, "decode") == pytest.approx(target, abs=0.01)
    assert found.config.public_fit["decode"].length_power == 1
    group = section_of(found.config)["config_groups"]["group_0"]
    assert group["target_sparsity"] == {"prefill": target, "decode": target}
    assert found.config.kernels["prefill"].group_rows == 64 and found.config.producer["name"] == "skimattn"


def test_the_model_is_left_as_it_was() -> None:
    model = GapModel([9.0, 7.0])
    sparsify(model, {"threshold": 0.1})
    before = [dict(module.__dict__) for module in model.modules()]
    calibrate(model, texts(1000), {"prefill": 0.5}, forward=loss_of(model), progress=False)
    model.runs = before[0]["runs"]
    assert [dict(module.__dict__) for module in model.modules()] == before


def test_each_layer_can_have_a_fit_of_its_own() -> None:
    model = GapModel([4.0, 8.0, 16.0])
    job: dict[str, Any] = {"forward": loss_of(model), "progress": False, "per_layer": True}
    found = calibrate(model, texts(1000, 2000), {"prefill": 0.5}, **job)
    sparsify(model, found.config)
    rows = [row.threshold for row in summary(model, 2000).rows if row.phase == "prefill"]
    wanted = [math.exp(-width * 0.5) / 2 for width in (4, 8, 16)]
    assert [float(row) for row in rows] == pytest.approx(wanted, rel=0.05)
    model.widths = [4.0, 8.0, 0.01]  # skips nothing until it skips everything
    with pytest.warns(SparseWarning, match=r"layers.2.self_attn: prefill: it takes the fit of the whole model"):
        calibrate(model, texts(1000, 2000), {"prefill": 0.5}, **job)


def test_chosen_modules_are_those_of_the_configuration() -> None:
    model = GapModel([8.0, 8.0])
    job: dict[str, Any] = {"forward": loss_of(model), "progress": False}
    found = calibrate(model, texts(1000), {"prefill": 0.5}, modules=["*.0.self_attn"], **job)
    assert found.config.targets == ("*.0.self_attn",) and list(found.points["prefill"])
    sparsify(model, found.config)
    assert policy_of(attention_modules(model)[LAYER(0)]) and not policy_of(attention_modules(model)[LAYER(1)])


@pytest.mark.parametrize("cost", ["loss", "divergence", "dropped", "output"])
@pytest.mark.parametrize("by", ["layer", "head"])
def test_thresholds_go_where_tiles_cost_least(cost: Any, by: Any) -> None:
    """S = 1 + ln(t) / width and a cost of w * t: at the best choice w * t * width is the same everywhere."""
    model = GapModel([6.0, 9.0, 12.0])
    forward = {"loss": loss_of, "divergence": divergence_of, "dropped": dropped_of, "output": changed_of}[cost](model)
    trials = list(np.geomspace(1e-4, 0.9, 24))
    found = calibrate(
        model,
        texts(1000),
        {"prefill": 0.5},
        forward=forward,
        progress=False,
        thresholds=trials,
        quality=Quality(by=by, cost=cost),
    )
    chosen = found.chosen["prefill"]
    assert chosen.share == pytest.approx(0.5, abs=0.005) and skipped(model, found.config, 1000) == chosen.share
    levels = []
    for layer, weights in enumerate(model.weights):
        factors = chosen.factors[LAYER(layer)]
        by_unit = factors if isinstance(factors, tuple) else (factors,)
        thresholds = [one / 1000**chosen.length_power for one in by_unit]
        units = weights if by == "head" else [sum(weights) / 2]
        levels += [math.log(w * t * model.widths[layer]) for w, t in zip(units, thresholds, strict=True)]
    assert max(levels) - min(levels) < 0.1, "a step of the grid is 0.05"
    uniform = calibrate(model, texts(1000), {"prefill": 0.5}, forward=forward, progress=False, thresholds=trials)
    skipped(model, uniform.config, 1000)
    assert model(texts(1000)[0], "prefill")[0] - 2 > chosen.cost * 1.05
    assert "units skip 50." in str(found)


@pytest.mark.parametrize("cost", ["loss", "divergence"])
def test_units_may_run_alone_on_fewer_texts_at_fewer_thresholds(cost: Any) -> None:
    model, tried, alone = GapModel([6.0, 9.0]), [0.01, 0.03, 0.1, 0.3], (0.02, 0.2)
    seen: list[int] = []

    def forward(sample: Any, phase: Any) -> Outcome:
        seen.append(len(sample))
        loss = model(sample, phase)[0]
        return Outcome(loss, divergence=loss - 2)

    quality = Quality(cost=cost, texts=1, thresholds=alone, corrections=0)
    job: dict[str, Any] = {"progress": False, "thresholds": tried, "quality": quality}
    found = calibrate(model, texts(1000, 1200), {"prefill": 0.4}, forward=forward, **job)
    profile = found.chosen["prefill"].profile
    assert profile.thresholds == alone and profile.cost.shape == (2, 2)
    counts = {length: seen.count(length) for length in (1000, 1200)}
    dense = {1000: 1, 1200: int(cost == "loss")}
    assert counts == {1000: 4 + dense[1000] + 4 + 1, 1200: 4 + dense[1200] + 1}, "trials, dense, alone, as a whole"


def test_what_layers_do_to_each_other_is_corrected() -> None:
    model = GapModel([8.0, 8.0], echo=0.05)
    shares = []
    for count in (0, 2):
        job: dict[str, Any] = {"progress": False, "quality": Quality(corrections=count)}
        found = calibrate(model, texts(1000), {"prefill": 0.5}, forward=loss_of(model), **job)
        shares.append(found.chosen["prefill"].share)
    assert shares[0] == pytest.approx(0.55, abs=0.005) and shares[1] == pytest.approx(0.5, abs=0.005)


def test_a_budget_is_kept_and_used() -> None:
    model = GapModel([6.0, 9.0])
    quality = Quality(budget={"prefill": 0.002})
    found = calibrate(model, texts(1000), forward=loss_of(model), progress=False, quality=quality)
    chosen = found.chosen["prefill"]
    assert 0.0018 < chosen.cost <= 0.002 and list(found.config.patterns) == [LAYER(0), LAYER(1)]


def test_heads_of_a_kv_head_share_a_threshold_in_decode() -> None:
    model = GapModel([8.0], heads=4)
    model.config.num_key_value_heads = 2
    found = calibrate(
        model, texts(1000), 0.5, forward=loss_of(model), progress=False, quality=Quality(by="head", corrections=0)
    )
    decode, prefill = (found.chosen[phase].factors[LAYER(0)] for phase in ("decode", "prefill"))
    assert isinstance(decode, tuple) and decode[0] == decode[1] != decode[2] == decode[3]
    assert isinstance(prefill, tuple) and len(set(prefill)) == 4
    assert skipped(model, found.config, 1000) == pytest.approx(0.5, abs=0.01)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    model, told = GapModel([8.0, 9.0]), list[Any]()
    job: dict[str, Any] = {"state": tmp_path / "state.jsonl", "quality": Quality()}
    job["progress"] = lambda *now: told.append(now)
    calls = iter(range(100))

    def dies(sample: Any, phase: Any) -> float:
        if next(calls) == 20:
            raise KeyboardInterrupt
        return loss_of(model)(sample, phase)  # type: ignore[no-any-return]

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, texts(1000, 2000), {"prefill": 0.5}, forward=dies, **job)
    with (tmp_path / "state.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    assert policy_of(attention_modules(model)[LAYER(0)]) is None and model.runs == 20
    found = calibrate(model, texts(1000, 2000), {"prefill": 0.5}, forward=loss_of(model), **job)
    whole, model.runs = model.runs - 20, 0
    again = calibrate(model, texts(1000, 2000), {"prefill": 0.5}, forward=loss_of(model), **job)
    assert model.runs == 0 and again.config == found.config
    job = {"progress": False, "quality": Quality()}
    fresh = calibrate(model, texts(1000, 2000), {"prefill": 0.5}, forward=loss_of(model), **job)
    assert fresh.config == found.config and model.runs == whole + 20
    assert told[0][0] == 1 and told[-1][0] == told[-1][1] > 40 and "prefill: " in told[0][2]


def test_states_of_others_are_refused(tmp_path: Path) -> None:
    model, file = GapModel([8.0]), tmp_path / "state"
    job: dict[str, Any] = {"forward": loss_of(model), "progress": False, "state": file}
    calibrate(model, texts(1000), {"prefill": 0.5}, **job)
    with pytest.raises(ArgumentError, match=r"^state: expected the file of this calibration in .*that of other texts"):
        calibrate(model, texts(2000), {"prefill": 0.5}, **job)
    with pytest.raises(ArgumentError, match=r"^state: .*that of other chunk"):
        calibrate(model, texts(1000), {"prefill": 0.5}, **job, about={"chunk": 5})
    file.write_text("nonsense\n")
    with pytest.raises(ArgumentError, match=r"^state: expected a file that a calibration left"):
        calibrate(model, texts(1000), {"prefill": 0.5}, **job)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": []}, "data: expected texts as token ids, at least one"),
        ({"data": [[1], []]}, "data: expected texts"),
        ({"targets": None}, "targets: expected shares to skip, or a quality with a budget"),
        ({"targets": 1.0}, "targets.prefill: expected above 0 and below 1"),
        ({"targets": {"prefil": 0.5}}, "targets.prefil: expected prefill or decode"),
        ({"targets": "half"}, "targets: expected a finite number"),
        ({"targets": [0.1, 0.2]}, "targets: expected one number for each phase"),
        (
            {"targets": {"decode": 0.95}},
            r"targets.decode: expected between 0.\d+ and 0.\d+, which trials skipped",
        ),
        ({"thresholds": [0.1]}, "thresholds: expected at least two, rising"),
        ({"thresholds": [0.3, 0.1]}, "thresholds: expected at least two, rising"),
        ({"thresholds": [0.3, 1.5]}, "thresholds: expected at least two, rising"),
        ({"thresholds": [1e-9, 1e-8]}, "points: expected at least two thresholds that skip 10% to 90%"),
        ({"quality": Quality(budget=0.1)}, "quality.budget.prefill: expected nothing beside a target"),
        ({"targets": None, "quality": Quality(budget=-1)}, "quality.budget.prefill: expected above 0"),
        ({"quality": Quality(texts=0)}, "quality.texts: expected 1 or more .got 0"),
        ({"quality": Quality(thresholds=(0.1,))}, "quality.thresholds: expected at least two, rising"),
        ({"quality": Quality(cost="divergence")}, "forward: expected the divergence of each text from the dense one"),
        ({"targets": {"prefill": 0.99}, "quality": Quality()}, "targets.prefill: expected a share that the largest"),
        (
            {"quality": Quality(cost="dropped")},
            "forward: expected the dropped mass of layers.0.self_attn, or cost=",
        ),
        (
            {"quality": Quality(cost="output")},
            "forward: expected the changed output of layers.0.self_attn, or cost=",
        ),
        ({"forward": lambda sample, phase: None}, "forward: expected prefill calls of layers.0.self_attn that count"),
        ({"forward": None}, "runner, forward: expected one of them"),
        ({"modules": ["*none*"]}, "model: expected modules that match"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    model = GapModel([8.0, 9.0])
    job = {"data": texts(1000), "targets": 0.5, "forward": loss_of(model), "progress": False, **changes}
    data, targets = job.pop("data"), job.pop("targets")
    with pytest.raises(ArgumentError, match=f"^{words}"):
        calibrate(model, data, targets, **job)


@pytest.mark.parametrize("by", ["layer", "head"])
def test_a_target_below_what_the_smallest_threshold_skips_is_met(by: Any) -> None:
    """S = 1 + ln(t) / width: at 0.02 layers skip 35 and 67 %, and a fifth of all lies below both."""
    model = GapModel([6.0, 12.0])
    found = calibrate(
        model,
        texts(1000),
        {"prefill": 0.2},
        forward=dropped_of(model),
        progress=False,
        thresholds=[0.02, 0.1, 0.5],
        quality=Quality(by=by, cost="dropped"),
        extrapolate=True,
    )
    assert found.chosen["prefill"].share == pytest.approx(0.2, abs=0.015)
    factors = np.hstack(list(found.chosen["prefill"].factors.values()))
    assert factors[factors > 0].min() / 1000 < 0.02 / 2


def test_what_skips_as_much_at_any_threshold_is_no_bargain_below_those_that_were_tried() -> None:
    skipped = np.array([[40.0, 40, 40, 42], [5.0, 10, 20, 40]])
    cost = np.array([[1e-3, 1e-3, 1e-3, 2e-3], [1e-5, 1e-4, 1e-3, 1e-2]])
    thresholds, visited = (1e-4, 1e-3, 1e-2, 1e-1), np.array([100.0, 100])
    made = choose(Profile((Unit("flat"), Unit("rising")), thresholds, visited, skipped, cost), share=0.2)
    assert made.cost > 2e-4, "40 of 100 tiles cost 1e-3 at the smallest threshold, and less skips fewer"


def test_a_runner_without_a_loss_makes_no_profile_of_losses() -> None:
    model = GapModel([8.0])
    with pytest.raises(ArgumentError, match=r"^forward: expected a loss for each text, or cost='dropped'"):
        calibrate(model, texts(1000), 0.5, forward=dropped_of(model), progress=False, quality=Quality())


def test_beyond_what_was_observed_if_asked() -> None:
    model = GapModel([8.0])
    found = calibrate(model, texts(1000), {"prefill": 0.93}, forward=loss_of(model), progress=False, extrapolate=True)
    assert found.config.extrapolate and skipped(model, found.config, 1000) == pytest.approx(0.93, abs=0.01)


def test_a_runner_of_ones_own() -> None:
    class Fixed:
        def run(self, sample: Any, phase: Any) -> Run:
            policy = policy_of(attention_modules(model)[LAYER(0)])
            factor = policy.rules[phase].factor if policy else 0.0
            assert isinstance(factor, float)
            counts = np.array([[1000, round(1000 * (1 + math.log(factor) / 9))]])
            return Run(len(sample), {LAYER(0): counts})

    model = ToyModel(1, heads=1)
    found = calibrate(model, [torch.arange(500)], {"prefill": 0.5}, runner=Fixed(), progress=True)
    assert found.config.fit["prefill"].b == pytest.approx(9, rel=0.01)
    assert "prefill: a target of 50.0 % is a threshold of" in str(found)


def test_counts_are_collected_and_collectors_put_back() -> None:
    model = GapModel([8.0])
    sparsify(model, {"threshold": 0.1}, count=True)
    policy = policy_of(attention_modules(model)[LAYER(0)])
    assert policy is not None
    own = policy.collector
    run = ModelRunner(model, loss_of(model)).run(texts(1000)[0], "prefill")
    assert policy.collector is own and run.counts[LAYER(0)].shape == (2, 2) and run.loss and run.loss > 2


def test_choices_of_the_smallest_profiles() -> None:
    units = (Unit("a"), Unit("b"))
    skip = np.array([[10.0, 80.0], [20.0, 60.0]])
    profile = Profile(units, (0.01, 0.1), np.array([100.0, 100.0]), skip, np.array([[0.0, 1.0], [0.0, 0.1]]))
    assert choose(profile, share=0.15).cost == 0, "what costs nothing comes first"
    for share in (0.2, 0.35, 0.5, 0.7):
        assert choose(profile, share=share).share == pytest.approx(share, abs=0.025)
    assert choose(profile, share=0.35).thresholds[0] < 0.011, "b is ten times cheaper"
    assert choose(profile, cost=5.0).share == pytest.approx(0.7) and choose(profile, cost=0.05).cost <= 0.05
    with pytest.raises(ArgumentError, match=r"^share: expected at most 0.700, .* \(got 0.800\)"):
        choose(profile, share=0.8)
    with pytest.raises(ArgumentError, match=r"^share, cost: expected one of them"):
        choose(profile)


def test_noisy_costs_are_made_to_rise() -> None:
    assert rising(np.array([0.0, 2.0, 1.0, 3.0, 0.0])).tolist() == [0.0, 1.5, 1.5, 1.5, 1.5]
    values = np.random.default_rng(0).normal(size=50)
    found = rising(values)
    assert (np.diff(found) >= 0).all() and found.sum() == pytest.approx(values.sum())


def test_plots_are_drawn_or_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GapModel([8.0], power=1.5)
    found = calibrate(model, texts(1000, 2000), 0.5, forward=loss_of(model), progress=False)
    found.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'skimattn\[calibrate\]'"):
        found.plot(tmp_path / "other.png")


def test_without_rich_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    model = GapModel([8.0])
    calibrate(model, texts(1000), {"prefill": 0.5}, forward=loss_of(model), progress=True)
