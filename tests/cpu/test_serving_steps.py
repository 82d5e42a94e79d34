"""Steps of serving engines: where they begin and end, what they count, what those that only generate cost."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn import ArgumentError
from skimattn.integrations.serving import channel
from skimattn.integrations.serving.skipping import Skipping
from skimattn.integrations.serving.statistics import Statistics
from skimattn.integrations.serving.thresholds import LayerRules
from skimattn.sparse import LayerPolicy, PhaseRule, StatLog, attach_policy, read_statistics
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = [f"model.layers.{number}.self_attn.attn" for number in range(3)]


def test_steps_end_where_the_next_begins(tmp_path: Path) -> None:
    """Two kinds of layers, whose batches make one step; a captured graph's counts are dropped."""
    modules = {name: torch.nn.Module() for name in LAYERS}
    rule = {"prefill": PhaseRule(0.5, 0.0), "decode": PhaseRule(0.5, 0.0)}
    for module in modules.values():
        attach_policy(module, LayerPolicy(dict(rule)))
    kinds = [
        Skipping({name: LayerRules(rule) for name in names}, 2, 4, torch.device("cpu"), count=True)
        for names in (LAYERS[1:], LAYERS[:1])
    ]
    path = tmp_path / "log.jsonl"
    with pytest.raises(ArgumentError, match=r"^path: expected a file, or a configuration with a stat_log_path \(got N"):
        StatLog(None, modules)
    statistics = Statistics(modules, torch.device("cpu"), path, partial(channel.write_tiles, tmp_path, 0, 0))

    def batch(decodes: list[bool], visited: int, *, real: bool = True) -> None:
        lengths = torch.full((len(decodes),), 64, dtype=torch.int32)
        for kind in kinds:
            phases, starts = torch.tensor(decodes), torch.arange(0, 2 * len(decodes) + 1, 2)
            statistics.begin(kind, phases, starts, real=real)
            arguments = kind.prepare(phases, lengths, whole=True)
            for index, name in enumerate(kind.names):
                arguments[name]["stats"].add_(torch.tensor([visited, index]))

    batch([True, False], 1000, real=False)
    batch([True, False], 10)
    batch([False, False, True], 100)
    statistics.publish()
    assert channel.read_tiles(tmp_path) == {"prefill": (3 * 10 + 6 * 100, 3), "decode": (330, 2)}
    batch([True], 1)
    statistics.close()
    statistics.close()
    assert channel.read_tiles(tmp_path)["decode"] == (333, 3)
    found = read_statistics(path)
    assert found.layers == tuple(LAYERS) and len(found.steps) == 3
    assert found.tiles["prefill"].tolist()[:2] == [[[10, 0], [10, 0], [10, 1]], [[200, 0], [200, 0], [200, 2]]]
    assert found.tiles["decode"].tolist()[2] == [[1, 0], [1, 0], [1, 1]]
    assert found.requests["decode"].tolist() == [1, 1, 1] and found.tokens["decode"].tolist() == [2, 2, 2]
    assert found.requests["prefill"].tolist() == [1, 2, 0] and found.tokens["prefill"].tolist() == [2, 4, 0]


class Operators(TorchDispatchMode):
    """What torch was asked to do with tensors that stand for those of the device, and what it copied there."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.names.append(function.name())
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize(("power", "launches"), [(0.0, False), (1.0, True)])
def test_steps_that_only_generate_launch_nothing(tmp_path: Path, power: float, launches: bool) -> None:
    """Without a log, and where no threshold depends on lengths: what they counted is collected with later ones."""
    module, rules = torch.nn.Module(), {"decode": PhaseRule(0.5, power)}
    attach_policy(module, LayerPolicy(dict(rules)))
    kind = Skipping({"layer": LayerRules(rules)}, 2, 4, torch.device("cpu"), count=True)
    shown: list[list[int]] = []
    statistics = Statistics({"layer": module}, torch.device("cpu"), None, shown.append)
    statistics._run = lambda: None  # type: ignore[method-assign]  # no thread that collects in between

    def step(decodes: list[bool], keys: int) -> list[str]:
        phases, lengths = torch.tensor(decodes), torch.full((len(decodes),), keys, dtype=torch.int32)
        starts = torch.arange(len(decodes) + 1)
        with Operators() as seen:
            statistics.begin(kind, phases, starts)
            arguments = kind.prepare(phases, lengths, whole=True)
            statistics.end()
        arguments["layer"]["stats"] += torch.tensor([keys, 1])
        factor = 0.5 / keys**power
        thresholds = arguments["layer"]["skip_softmax_threshold"].tolist()
        assert thresholds == pytest.approx([factor if generates else 0 for generates in decodes])
        return seen.names

    first = step([True, True], 10)
    again = step([True, True], 20)
    assert "aten::copy_" in first and "aten::index_add_" not in again
    host = {f"aten::{name}" for name in ("equal", "all", "any", "_local_scalar_dense", "is_nonzero", "slice.Tensor")}
    assert bool(set(again) - host) is launches, again
    assert "aten::index_add_" in step([False, True], 40), "other phases: what was counted is collected before"
    statistics.publish()
    statistics.close()
    assert shown[0] == shown[-1] == [40, 1, 2 * 10 + 2 * 20 + 40, 5]


@pytest.mark.parametrize("publishes", [False, True])
def test_without_a_log_every_count_arrives_in_its_phase(publishes: bool) -> None:
    """Of layers whose batches differ, of graphs that are captured in between, and of sizes that come and go."""
    module, rules = torch.nn.Module(), {"decode": PhaseRule(0.5, 0.0)}
    attach_policy(module, LayerPolicy(dict(rules)))
    names = ("first", "second")
    kinds = [Skipping({name: LayerRules(rules)}, 2, 2, torch.device("cpu"), count=True) for name in names]
    shown: list[list[int]] = []
    statistics = Statistics(dict.fromkeys(names, module), torch.device("cpu"), None, shown.append)
    statistics._run = lambda: None  # type: ignore[method-assign]  # no thread that collects in between
    wanted = [0, 0, 0, 0]

    def described(index: int, decodes: list[bool], real: bool) -> torch.Tensor:
        phases, lengths = torch.tensor(decodes), torch.full((len(decodes),), 64, dtype=torch.int32)
        statistics.begin(kinds[index], phases, torch.arange(len(decodes) + 1), real=real)
        given = kinds[index].prepare(phases, lengths, whole=True)[names[index]]
        assert given["skip_softmax_threshold"].tolist() == [0.5 if generates else 0.0 for generates in decodes]
        return given["stats"]

    def step(*batches: list[bool], real: bool = True) -> None:
        """Batches of both kinds are described before any of their layers is computed."""
        stats = [described(index, decodes, real) for index, decodes in enumerate(batches)]
        for index, decodes in enumerate(batches):
            for place, generates in enumerate(decodes):
                counted = [10 + place, 1 + index]
                stats[index][place] += torch.tensor(counted)
                for at, number in enumerate(counted if real else ()):
                    wanted[2 * generates + at] += number
        if publishes and real:
            statistics.publish()
            assert shown[-1] == wanted

    yes, no = True, False
    # Those of one kind go on where the other's change, and the other way round.
    for number, (first, second) in enumerate(
        (
            ([yes, yes], [yes, yes]),
            ([yes, yes], [no, yes]),
            ([no, yes], [no, yes]),
            ([no, yes], [yes]),
            ([yes, yes, yes], [yes]),
            ([yes], [yes, no, yes]),
            ([no], [yes, no, yes]),
        )
    ):
        step(first, second)
        if number in (1, 4):
            step(first, real=False)
    statistics.end()
    statistics.publish()
    statistics.close()
    assert shown[-1] == wanted and wanted[0] and wanted[2]


def test_the_last_step_is_written_when_the_process_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = f"""
import torch
from pathlib import Path
from functools import partial
from skimattn.integrations.serving.channel import write_tiles
from skimattn.integrations.serving.skipping import Skipping
from skimattn.integrations.serving.statistics import Statistics
from skimattn.integrations.serving.thresholds import LayerRules
from skimattn.sparse import LayerPolicy, PhaseRule, attach_policy
show = partial(write_tiles, Path({str(tmp_path)!r}), 0, 0)
module, rules = torch.nn.Module(), {{"decode": PhaseRule(0.5)}}
attach_policy(module, LayerPolicy(rules))
kind = Skipping({{"layer": LayerRules(rules)}}, 2, 4, torch.device("cpu"), count=True)
statistics = Statistics({{"layer": module}}, torch.device("cpu"), Path({str(path)!r}), show)
for visited in (5, 6):
    decodes = torch.tensor([True])
    statistics.begin(kind, decodes, torch.tensor([0, 1]))
    arguments = kind.prepare(decodes, torch.tensor([64]), whole=True)
    arguments["layer"]["stats"] += torch.tensor([visited, 1])
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert made.returncode == 0 and not made.stderr, made.stderr
    assert read_statistics(path).tiles["decode"].tolist() == [[[5, 1]], [[6, 1]]]
    assert channel.read_tiles(tmp_path)["decode"] == (11, 2)
