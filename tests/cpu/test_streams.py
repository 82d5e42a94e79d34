"""Streams, and the work counters that go with them: no two launches that may run together share one."""

from __future__ import annotations

import pytest
import torch
from cuda.bindings import driver as real
from skimattn import ArgumentError, Params, launch, launcher
from skimattn._cuda import device as device_module
from skimattn._cuda.counters import CHUNK

from tests.helpers.fake_driver import FakeDriver, install
from tests.helpers.fake_driver import small_call as call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


def test_launches_on_one_stream_share_a_counter(fake: FakeDriver) -> None:
    params = call()
    for stream in (None, None, 1, 7, 7, 8):
        launch_on(params, stream)
    counters = [sent.block.work_counter for sent in fake.launches]
    assert counters[0] == counters[1] == counters[2] and counters[3] == counters[4]  # 1 is the default stream's name
    assert len({counters[0], counters[3], counters[5]}) == 3
    assert [sent.stream for sent in fake.launches] == [0, 0, 0, 7, 7, 8]
    assert fake.calls.count("cuMemAlloc") == 1


def launch_on(params: Params, stream: int | None) -> None:
    """``launch`` on a stream that is torch's current one, since there is no CUDA allocator here to switch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher.streams, "current", lambda _: 0 if stream in (None, 1) else stream)
        launch(params, stream)


def test_a_reused_stream_handle_gets_a_counter_of_its_own(fake: FakeDriver) -> None:
    launch_on(call(), 7)
    fake.stream_ids[7] = 12345  # the driver gave a new stream an old one's handle
    launch_on(call(), 7)
    first, second = (sent.block.work_counter for sent in fake.launches)
    assert first != second


def test_captured_launches_never_share_a_counter(fake: FakeDriver) -> None:
    params = call()
    launch_on(params, 7)
    fake.capturing.add(7)
    for _ in range(3):
        launch_on(params, 7)
    fake.capturing.clear()
    launch_on(params, 7)
    counters = [sent.block.work_counter for sent in fake.launches]
    assert len(set(counters[:4])) == 4 and counters[4] == counters[0]


def test_counters_refill_without_touching_the_capture(fake: FakeDriver) -> None:
    counters = device_module.device(0).counters
    taken = [counters.of_captured_launch() for _ in range(CHUNK + 1)]
    assert len(set(taken)) == CHUNK + 1 and fake.calls.count("cuMemAlloc") == 2
    before = fake.calls.index("cuMemAlloc")
    assert fake.calls[before - 1] == "cuThreadExchangeStreamCaptureMode" == fake.calls[before + 5]


def test_streams_by_handle_and_protocol(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Protocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 9

    monkeypatch.setattr(launcher.streams, "current", lambda _: 9)
    params = call()
    for stream in (9, real.CUstream(9), Protocol()):
        launch(params, stream)
    assert [sent.stream for sent in fake.launches] == [9, 9, 9]
    for wrong, text in ((True, "True"), (-1, "-1"), ("main", "str"), (1.5, "1.5"), (object(), "object")):
        with pytest.raises(ArgumentError, match=rf"^stream: expected None, a stream .*\(got .*{text}"):
            launch(params, wrong)
    with pytest.raises(ArgumentError, match=r"^stream: expected a stream on cuda:0, like q \(got cpu\)"):
        launch(params, torch.Stream("cpu"))
    assert len(fake.launches) == 3
