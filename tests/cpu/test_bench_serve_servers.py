"""``bench serve``: what servers and the client are told, and what they say, without vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import serve_servers
from bench.serve_plan import PEER, Contender, Group, Row, contenders
from bench.serve_servers import Server

MADE = contenders({0.5: 0.003, 0.9: 0.2}, [0, 0.5, 0.9])
ROW = Row("planted", 1024, 2, 2, 4, 2)


def test_what_servers_are_told() -> None:
    group = Group((ROW,), tuple(MADE), 2.5, 4096, 64)
    peer = serve_servers.words(Path("m"), MADE[0], group, "cuda", 1234, ["--enforce-eager"])
    assert peer[peer.index("--attention-backend") + 1] == "FLASH_ATTN" and "--additional-config" not in peer
    assert peer[peer.index("--kv-cache-memory-bytes") + 1] == "2500000000" and peer[-1] == "--enforce-eager"
    assert float(peer[peer.index("--gpu-memory-utilization") + 1]) < 0.1, "others are there already"
    assert peer[peer.index("--max-model-len") + 1] == "4096" and "--no-enable-prefix-caching" in peer
    configs = []
    for contender in MADE[1:]:
        ours = serve_servers.words(Path("m"), contender, group, "cuda", 1234, [])
        assert ours[ours.index("--attention-backend") + 1] == "CUSTOM"
        configs.append(json.loads(ours[ours.index("--additional-config") + 1])["skimattn"]["config"])
    assert configs == [False, {"threshold": 0.003}, {"threshold": 0.2}]
    assert "--attention-backend" not in serve_servers.words(Path("m"), MADE[1], group, "cpu", 1234, [])


def test_servers_of_a_cpu_are_told_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIMATTN_VLLM_CONFIG", '{"threshold": 0.5}')
    monkeypatch.setenv("PYTHONPATH", "/one")
    ours, peer = (serve_servers.environment(which, "cpu", "/plugin") for which in (True, False))
    assert (ours["SKIMATTN_VLLM_CPU"], peer["SKIMATTN_VLLM_CPU"]) == ("1", "0")
    assert "SKIMATTN_VLLM_CONFIG" not in ours, "what the shell says is not measured"
    assert ours["PYTHONPATH"].startswith("/plugin:/one:") and ours["HF_HUB_OFFLINE"] == "1"
    assert "SKIMATTN_VLLM_CPU" not in serve_servers.environment(True, "cuda", None)


def test_entry_points_are_written_down_where_they_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PathDistribution

    monkeypatch.setattr(serve_servers, "entry_points", lambda group: [])
    assert serve_servers.make_plugin(tmp_path) == str(tmp_path)
    found = PathDistribution(tmp_path / "skimattn-0.dist-info")
    assert {(one.group, one.value) for one in found.entry_points} == {
        ("vllm.general_plugins", "skimattn.integrations.vllm:register"),
        ("vllm.stat_logger_plugins", "skimattn.integrations.vllm._metrics:TileMetrics"),
    }
    here = [type("Point", (), {"name": "skimattn"})]
    monkeypatch.setattr(serve_servers, "entry_points", lambda group: here)
    assert serve_servers.make_plugin(tmp_path) is None


METRICS = """# HELP skimattn_tiles_visited_total Tiles
skimattn_tiles_visited_total{engine="0",model_name="model",phase="prefill"} 100.0
skimattn_tiles_visited_total{engine="1",model_name="model",phase="prefill"} 20.0
skimattn_tiles_skipped_total{engine="0",model_name="model",phase="prefill"} 30.0
skimattn_tiles_visited_total{engine="0",model_name="model",phase="decode"} 0.0
skimattn_tiles_skipped_total{engine="0",model_name="model",phase="decode"} 0.0
"""


def test_tiles_between_two_looks_at_the_endpoint() -> None:
    after = serve_servers.tiles_of(METRICS)
    assert after["prefill"] == {"visited": 120.0, "skipped": 30.0}
    before = {"prefill": {"visited": 20.0, "skipped": 5.0}}
    found = serve_servers.tiles_between(before, after)
    assert found["prefill"] == {"visited": 100.0, "skipped": 25.0}
    assert serve_servers.shares_of(found) == {"prefill": 0.25, "decode": None}
    assert serve_servers.tiles_of("") == {}


def test_milliseconds_of_requests() -> None:
    found = {"ttfts": [0.1, 0.2], "itls": [[0.01, 0.03, 0.02], []], "output_lens": [5, 1]}
    times = serve_servers.milliseconds(found)
    assert times["ttft"] == [100.0, 200.0]
    assert times["tpot"] == pytest.approx([15.0]), "two tokens may come in one piece; one token has no step"


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_servers, "words", lambda *_: ["sh", "-c", "echo no such model; exit 1"])
    group = Group((ROW,), (Contender(PEER, False),), 1.0, 100, 1)
    with (
        pytest.raises(OSError, match=r"the server vllm did not start:\nno such model"),
        serve_servers.serving(tmp_path, group, "cpu", tmp_path, None, []),
    ):
        pass


def test_the_client_hands_requests_on_and_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"ttfts": [0.1], "itls": [[]], "output_lens": [1], "errors": [""]}, {"failed": "ValueError: no"}]
    answers.append({"errors": ["", "Bad Request"]})
    script = "import sys\nfor answer in ANSWERS:\n    line = sys.stdin.readline()\n    print('noise')\n"
    script += f"    print('{serve_servers.MARK}' + answer, flush=True)\n"
    (tmp_path / "fake.py").write_text(f"ANSWERS = {[json.dumps(one) for one in answers]!r}\n{script}")
    popen = serve_servers.subprocess.Popen

    def faked(command: list[str], **options: Any) -> Any:
        assert command[1:] == ["-m", "bench.serve_client"]
        return popen([command[0], str(tmp_path / "fake.py")], **options)

    monkeypatch.setattr(serve_servers.subprocess, "Popen", faked)
    client = serve_servers.Client("cpu", None, tmp_path / "log")
    server = Server(MADE[1], "http://x")
    try:
        assert client.run(server, tmp_path, tmp_path / "r", 1, 1) == answers[0]
        with pytest.raises(OSError, match="ours dense: ValueError: no"):
            client.run(server, tmp_path, tmp_path / "r", 1, 1)
        with pytest.raises(OSError, match="ours dense: Bad Request"):
            client.run(server, tmp_path, tmp_path / "r", 1, 1)
        with pytest.raises(OSError, match="the client ended"):
            client.run(server, tmp_path, tmp_path / "r", 1, 1)
    finally:
        client.close()
