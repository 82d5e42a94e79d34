"""vLLM's servers and its client as processes, and what servers say of tiles."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from .serve_client import MARK
from .serve_plan import Contender, Group

_ROOT = Path(__file__).resolve().parents[1]
_PLUGINS = ("vllm.general_plugins", "vllm.stat_logger_plugins")
_TILES = re.compile(r'^skimattn_tiles_(visited|skipped)_total\{[^}]*phase="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)
UNASKED = "0.02"  # of memory that must be free: servers start beside each other, with caches of a given size
SETTLED = 2.5  # seconds after which the endpoint shows all tiles
Tiles = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    contender: Contender
    address: str

    def tiles(self) -> Tiles:
        """What its endpoint shows: by phase, visited and skipped ones."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=60) as answer:
            return tiles_of(answer.read().decode())


def tiles_of(text: str) -> Tiles:
    """Tiles in a text of the metrics endpoint, added up over engines."""
    found: Tiles = {}
    for kind, phase, value in _TILES.findall(text):
        counts = found.setdefault(phase, {"visited": 0.0, "skipped": 0.0})
        counts[kind] += float(value)
    return found


def tiles_between(before: Tiles, after: Tiles) -> Tiles:
    """What was counted in between."""
    nothing = {"visited": 0.0, "skipped": 0.0}
    return {
        phase: {kind: counts[kind] - before.get(phase, nothing)[kind] for kind in nothing}
        for phase, counts in after.items()
    }


def shares_of(tiles: Tiles) -> dict[str, float | None]:
    """The skipped share of the visited tiles by phase; None where none was visited."""
    return {
        phase: counts["skipped"] / counts["visited"] if counts["visited"] else None for phase, counts in tiles.items()
    }


def make_plugin(folder: Path) -> str | None:
    """Where the package is not installed, vLLM does not find its entry points: they are written down here.

    Returns:
        What has to stand in ``PYTHONPATH``; None: nothing, since it is installed.
    """
    missing = [name for name in _PLUGINS if all(one.name != "skimattn" for one in entry_points(group=name))]
    if not missing:
        return None
    with (_ROOT / "pyproject.toml").open("rb") as file:
        named = tomllib.load(file)["project"]["entry-points"]
    info = folder / "skimattn-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: skimattn\nVersion: 0\n")
    lines = [line for name in missing for line in (f"[{name}]", f"skimattn = {named[name]['skimattn']}")]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


def environment(ours: bool, device: str, plugin: str | None) -> dict[str, str]:
    """Of a server, and of what else runs vLLM."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("SKIMATTN_VLLM")}
    found |= {"HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    found["VLLM_LOG_STATS_INTERVAL"] = "1"  # seconds after which the endpoint shows what was counted
    paths = [plugin, os.environ.get("PYTHONPATH"), str(_ROOT)]
    found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if device == "cpu":
        found |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        found["SKIMATTN_VLLM_CPU"] = str(int(ours))
    return found


def words(model: Path, contender: Contender, group: Group, device: str, port: int, extra: Sequence[str]) -> list[str]:
    """The command of a server."""
    made = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    made += ["--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    made += ["--max-model-len", str(group.longest), "--max-num-seqs", str(group.seats), "--no-enable-prefix-caching"]
    if device == "cuda":
        backend = "CUSTOM" if contender.ours else "FLASH_ATTN"
        made += ["--attention-backend", backend, "--kv-cache-memory-bytes", str(int(group.cache_gb * 1e9))]
        made += ["--gpu-memory-utilization", UNASKED]
    if contender.ours:
        made += ["--additional-config", json.dumps({"skimattn": {"config": contender.config or False}})]
    return [*made, *extra]


@contextmanager
def serving(
    model: Path,
    group: Group,
    device: str,
    logs: Path,
    plugin: str | None,
    extra: Sequence[str],
    patience: float = 600.0,
) -> Iterator[list[Server]]:
    """All servers of a group, started together; they end when this does.

    Raises:
        OSError: one does not start; the text ends with what it said.
    """
    with ExitStack() as stack:
        started = []
        for contender in group.contenders:
            port = _free_port()
            log = logs / f"{contender.name.replace(' ', '-')}.log"
            out = stack.enter_context(log.open("w"))
            process = subprocess.Popen(
                words(model, contender, group, device, port, extra),
                env=environment(contender.ours, device, plugin),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            stack.callback(_end, process)
            started.append((Server(contender, f"http://127.0.0.1:{port}"), process, log))
        for server, process, log in started:
            _await(server, process, log, patience)
        yield [server for server, _, _ in started]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _await(server: Server, process: subprocess.Popen[bytes], log: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{server.address}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    raise OSError(f"the server {server.contender.name} did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(60)


class Client:
    """vLLM's benchmark client, which waits for jobs."""

    def __init__(self, device: str, plugin: str | None, log: Path) -> None:
        """Start it; it imports vLLM while servers do."""
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.serve_client"],
            env=environment(False, device, plugin),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def run(self, server: Server, tokenizer: Path, requests: Path, count: int, concurrency: int) -> dict[str, Any]:
        """Send the first ``count`` requests of a file, so many at a time; what the client measured.

        Raises:
            OSError: it fails, or a request does.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = ["--backend", "openai", "--base-url", server.address, "--endpoint", "/v1/completions"]
        asked += ["--model", "model", "--tokenizer", str(tokenizer), "--dataset-name", "custom"]
        asked += ["--dataset-path", str(requests), "--num-prompts", str(count), "--max-concurrency", str(concurrency)]
        asked += ["--temperature", "0", "--ignore-eos", "--disable-tqdm", "--ready-check-timeout-sec", "0"]
        with suppress(BrokenPipeError):  # of a client that has ended, as is said below
            self._process.stdin.write(json.dumps([*asked, "--save-detailed"]) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                said = found.get("failed") or next((error for error in found["errors"] if error), None)
                if said:
                    raise OSError(f"{server.contender.name}: {said}")
                return found
        raise OSError(f"the client ended: {Path(self._log.name).read_text(errors='replace')[-3000:]}")

    def close(self) -> None:
        """End it."""
        _end(self._process)  # type: ignore[arg-type]
        self._log.close()


def milliseconds(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Of each request: until its first token, and of each token behind it."""
    steps = zip(found["itls"], found["output_lens"], strict=True)
    return {
        "ttft": [1e3 * value for value in found["ttfts"]],
        "tpot": [1e3 * sum(times) / (tokens - 1) for times, tokens in steps if tokens > 1],
    }
