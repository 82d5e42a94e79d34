"""``StatLog``: what a sparsified model skips, step by step, in a file."""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import skimattn
import torch

from ...errors import expected
from ..model import config_of
from ..policy import PHASES, Collector, LayerPolicy, Phase, policies_of
from .counters import Counters, LayerCollector
from .ranks import rank_and_world, rank_path, summed_over_ranks
from .read import FORMAT, summary_path
from .writer import Writer

_EXIT_SECONDS = 10.0  # to wait for a device that may never answer


class StatLog:
    """Writes (visited, skipped) tiles of every layer and phase, step by step, as JSON Lines, and a summary as JSON.

    ``with StatLog("stats.jsonl", model) as log:`` and ``log.step(...)`` after every forward pass. Kernels count on the
    device; a step copies the counters behind what was launched and waits for nothing. It works while CUDA graphs are
    captured and replayed, as long as the log was made before the capture and ``step`` is called outside of graphs.

    Each rank of ``torch.distributed`` has a file, of which rank 0's has the name given; whoever reads it adds them up.

    Args:
        path: the file, which is begun anew; None: the ``stat_log_path`` of the model's configuration. The summary is
            written beside it, as ``*.summary.json``.
        model: a sparsified one, whose layers are counted from now on; or its attention modules, by name.
        most_lost: steps that may be under way, which are lost if the process is killed.
        same_requests: ranks share the heads of the same requests (tensor parallel), so that tiles are added up over
            ranks, but requests and tokens are not.

    ``counters`` is what calls add to.

    Raises:
        ArgumentError: no attention module of the model has a policy, ``most_lost`` is below 1, or nobody names a file.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path | None,
        model: torch.nn.Module | Mapping[str, torch.nn.Module],
        *,
        most_lost: int = 64,
        same_requests: bool = False,
    ) -> None:
        """Attach to the model, and begin the file."""
        if most_lost < 1:
            raise expected("most_lost", "1 or more", most_lost)
        found = policies_of(model)
        if not found:
            raise expected("model", "one with policies, such as sparsify attaches", type(model).__name__)
        path = _path_of(model) if path is None else path
        self._names, self._policies = list(found), list(found.values())
        self._rank, self._world = rank_and_world()
        self._same_requests = same_requests
        self.path, self._file = Path(path), rank_path(Path(path), self._rank)
        self.counters = Counters(len(found))
        modules = [model] if isinstance(model, torch.nn.Module) else model.values()
        parameters = (parameter for module in modules for parameter in module.parameters())
        for device in {parameter.device for parameter in parameters} or {torch.device("cpu")}:
            if device.type != "meta":
                self.counters.allocate(device)
        self._steps, self._sums = 0, dict.fromkeys((*_names("requests"), *_names("tokens")), 0)
        self._known = [(policy.rules, policy.enabled) for policy in self._policies]
        self._writer = Writer(self._file, self._header(), most_lost)
        self._before: list[Collector | None] = [policy.collector for policy in self._policies]
        for index, policy in enumerate(self._policies):
            policy.collector = LayerCollector(self.counters, index)
        self._open = True
        atexit.register(self._flush)

    def step(self, *, requests: Mapping[Phase, int] | None = None, tokens: Mapping[Phase, int] | None = None) -> None:
        """End a step: everything that was launched since the one before belongs to it.

        Args:
            requests: how many requests of each phase were computed.
            tokens: how many tokens.

        Raises:
            ArgumentError: a CUDA graph is being captured, a phase is unknown, or the log is closed.
        """
        if not self._open:
            raise expected("step", "a log that is open", f"{self._file}, which is closed")
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise expected("step", "to be called between replays", "a call while a CUDA graph is captured")
        row: dict[str, Any] = {"step": self._steps, "time": round(time.time(), 3)}
        for key, given in (("requests", requests), ("tokens", tokens)):
            if given is not None:
                row[key] = _checked(key, given)
                for phase, number in row[key].items():
                    self._sums[f"{key}.{phase}"] += number
        if self._have_rules_changed():
            row["rules"] = self._rules()
        self._steps += 1
        self._writer.put(self.counters, row)

    def close(self) -> None:
        """Write what is under way and the summary, and give the model its collectors back.

        With several ranks all of them have to call it: the summary of rank 0 is of them all.
        """
        if not self._open:
            return
        self._detach()
        self._writer.close()
        self._summarise(reduce=True)

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; after an error without asking other ranks, which may never come."""
        if error is None:
            self.close()
        else:
            self._flush()

    def _flush(self) -> None:
        if not self._open:
            return
        self._detach()
        self._writer.close(_EXIT_SECONDS)
        self._summarise(reduce=False)

    def _detach(self) -> None:
        self._open = False
        atexit.unregister(self._flush)
        for policy, collector in zip(self._policies, self._before, strict=True):
            if isinstance(policy.collector, LayerCollector) and policy.collector.counters is self.counters:
                policy.collector = collector

    def _have_rules_changed(self) -> bool:
        pairs = zip(self._policies, self._known, strict=True)
        if all(policy.rules is rules and policy.enabled == enabled for policy, (rules, enabled) in pairs):
            return False
        self._known = [(policy.rules, policy.enabled) for policy in self._policies]
        return True

    def _rules(self) -> list[dict[str, Any]]:
        return [_shown(policy) for policy in self._policies]

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": str(skimattn.__version__),
            "rank": self._rank,
            "world": self._world,
            "same_requests": self._same_requests,
            "layers": self._names,
            "rules": self._rules(),
        }

    def _summarise(self, reduce: bool) -> None:
        zeros = torch.zeros((len(self._names), len(PHASES), 2), dtype=torch.int64)
        tiles = zeros if self._writer.total is None else self._writer.total
        sums = torch.tensor(list(self._sums.values()), dtype=torch.int64)
        if reduce and self._world > 1:
            tiles = summed_over_ranks(tiles)
            sums = sums if self._same_requests else summed_over_ranks(sums)
            if self._rank:
                return
        row: dict[str, Any] = {"format": FORMAT, "steps": self._steps, "lost": self._writer.lost}
        row |= {"ranks": self._world if reduce else 1, "layers": self._names}
        row |= dict(zip(self._sums, sums.tolist(), strict=True))
        row["tiles"] = {phase: tiles[:, index].tolist() for index, phase in enumerate(PHASES)}
        file = summary_path(self.path if reduce else self._file)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(row) + "\n", encoding="utf-8")
        temporary.replace(file)


def _names(key: str) -> list[str]:
    return [f"{key}.{phase}" for phase in PHASES]


def _path_of(model: torch.nn.Module | Mapping[str, torch.nn.Module]) -> str:
    path = config_of(model).stat_log_path if isinstance(model, torch.nn.Module) else None
    if path is None:
        raise expected("path", "a file, or a configuration with a stat_log_path", None)
    return path


def _checked(key: str, given: Mapping[Phase, int]) -> dict[str, int]:
    for phase in given:
        if phase not in PHASES:
            raise expected(f"{key}.{phase}", "prefill or decode", "another key")
    return {phase: int(number) for phase, number in given.items()}


def _shown(policy: LayerPolicy) -> dict[str, Any]:
    """Factor and length power by phase: ``threshold = factor / len_k ** length_power``. Empty: dense."""
    if not policy.enabled:
        return {}
    return {phase: [rule.factor, rule.length_power] for phase, rule in policy.rules.items()}
