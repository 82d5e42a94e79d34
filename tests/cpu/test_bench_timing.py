"""Graphs of calls, with a fake of torch's."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch

from bench import timing


class FakeGraph:
    """Counts its replays."""

    replays = 0

    def replay(self) -> None:
        FakeGraph.replays += 1


class Reader:
    """A call that holds the tensors which its kernel reads."""

    def __init__(self) -> None:
        self.tensor, self.calls = torch.zeros(3), 0

    def __call__(self) -> None:
        self.calls += 1


def test_a_replay_keeps_what_its_graph_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of bench decode died of it: pages of 64 were freed, and returned to the driver, before they were timed."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
    first, second = Reader(), Reader()
    replay = timing.graphed([first, second], 3)
    assert (first.calls, second.calls) == (3, 2), "once before the capture, then in turn"
    alive = weakref.ref(first.tensor)
    before = FakeGraph.replays
    del first, second
    gc.collect()
    assert alive() is not None
    replay()
    assert FakeGraph.replays == before + 1
    del replay
    gc.collect()
    assert alive() is None
