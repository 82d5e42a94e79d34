"""``python -m bench serve``: vLLM's server with its own attention and with ours, by vLLM's own benchmark client.

All servers of a row run at the same time where they fit, answer the same token ids in turns, and are compared inside
rounds: time to the first token (ttft) and per further one (tpot), medians and tails. Then an engine under torch's
profiler tells what share of that attention is, and how much faster its kernels are at what was skipped: the speed that
this allows is the goal. Models: SmolLM2, and random weights that skip (``bench/serve_models.py``); or ``--model``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import machine, results, serve_models, serve_table, table
from .serve_measure import attention_of, case_of, rounds
from .serve_plan import DENSE, PEER, ROWS, SUBJECTS, Contender, Row, Subject, contenders, groups
from .serve_servers import Client, make_plugin, serving

_TINY = serve_models.Planted(2, 4, 2, 64, 128, 128, 512, 4096)
_ROOT = Path(__file__).resolve().parents[1]
_SPARE = 0.92  # of a GPU's memory


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m bench serve", description=__doc__)
    made.add_argument("--short", action="store_true", help="the rows that fit into eight minutes of one GPU")
    made.add_argument("--only", nargs="+", default=[""], help="rows whose label holds one of these texts")
    made.add_argument("--shares", nargs="+", type=float, default=[0, 0.5, 0.9], help="to skip; 0: dense")
    made.add_argument("--model", type=Path, help="a folder, in place of the models of the rows")
    made.add_argument("--replay", type=Path, help="requests of skimattn eval --dump; with --model")
    made.add_argument("--config", type=Path, help="a configuration for it, in place of --shares")
    made.add_argument("--concurrency", nargs="+", type=int, default=[1, 64], help="of --replay")
    made.add_argument("--rounds", type=int, help="default: those of the row (3 of --replay)")
    made.add_argument("--memory", type=float, help="GB for all servers; default: what the GPU has free")
    made.add_argument("--gpus", type=int, default=1, help="that each server shares; above 1 without attention's share")
    made.add_argument("--server", default="", help="further arguments of servers, as one text")
    made.add_argument("--no-attention", action="store_true", help="do not look at attention's share")
    made.add_argument("--tiny", action="store_true", help="a small model and few requests, to see it work on a CPU")
    made.add_argument("--work", type=Path, help="folder for models, requests and logs, which are kept")
    made.add_argument("--list", action="store_true", help="print the rows, and end")
    made.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the JSON and PNG files")
    return made


def chosen(options: argparse.Namespace) -> list[Row]:
    """The rows that were asked for; ``ValueError`` if they cannot be."""
    if (options.model is None) != (options.replay is None):
        raise ValueError("--model: expected --replay beside it, and the other way round (got one)")
    if options.config is not None and options.model is None:
        raise ValueError("--config: expected --model and --replay beside it (got neither)")
    rows: Sequence[Row] = ROWS
    if options.tiny:
        rows = [Row("planted", 1024, many, 2, 4, 1) for many in (1, 2)]
    if options.replay is not None:
        requests = serve_models.read_requests(options.replay)
        longest = max(len(one["prompt"]) for one in requests)
        new = max(one["output_tokens"] for one in requests)
        rows = [Row("replay", longest, many, len(requests), new, 3) for many in options.concurrency]
    found = [
        row for row in rows if any(text in row.label for text in options.only) and (row.short or not options.short)
    ]
    if not found:
        raise ValueError("--only and --short: expected to leave a row (see --list)")
    if options.rounds is None:
        return found
    return [Row(**{**vars(row), "rounds": options.rounds}) for row in found]


def subject_of(folder: Path) -> Subject:
    """Sizes of a model in a folder."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    token = config["num_hidden_layers"] * 2 * (config.get("num_key_value_heads") or heads) * dim * 2
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9
    return Subject("replay", weights, token, {})


def prepare(rows: Sequence[Row], options: argparse.Namespace, work: Path) -> tuple[Path, Subject, dict[Row, Path]]:
    """The model of some rows in a folder, its sizes, and a file of requests for each row."""
    name = rows[0].model
    if name == "replay":
        return options.model, subject_of(options.model), dict.fromkeys(rows, options.replay)
    folder = work / name
    sizes = _TINY if options.tiny else serve_models.Planted()
    if not (folder / "config.json").exists():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "planted":
            serve_models.save_planted(folder, sizes, device)
        else:
            serve_models.save_smollm2(folder)
    made = {}
    for row in rows:
        made[row] = work / f"{row.label.replace(' ', '-')}.jsonl"
        if name == "planted":
            prompts = serve_models.planted_prompts(row.length, row.requests, sizes.vocabulary)
        else:
            prompts = serve_models.text_prompts(_tokens(folder), row.length, row.requests)
        serve_models.write_requests(made[row], prompts, row.new_tokens)
    return folder, SUBJECTS[name], made


def _tokens(folder: Path) -> list[int]:
    """Of the texts of this project."""
    import transformers

    text = "\n".join(path.read_text() for path in sorted(_ROOT.rglob("*.md")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [int(token) for token in tokenizer(text, add_special_tokens=False).input_ids]


def asked_of(options: argparse.Namespace, subject: Subject) -> list[Contender]:
    """The servers that rows are measured with; ``ValueError`` for a share that has no threshold."""
    if options.model is None:
        return contenders(subject.thresholds, options.shares)
    made = [Contender(PEER, ours=False), Contender(DENSE, ours=True)]
    if options.config is not None:
        made.append(Contender(f"ours {options.config.stem}", True, str(options.config.resolve())))
    return made


def measure(rows: Sequence[Row], options: argparse.Namespace, work: Path, device: str) -> Iterator[dict[str, Any]]:
    """The results of rows of one model."""
    plugin = make_plugin(work / "site")
    model, subject, requests = prepare(rows, options, work)
    made = asked_of(options, subject)
    memory = options.memory or _memory(device)
    planned = groups(rows, made, subject.weights / options.gpus, subject.token_bytes // options.gpus, memory)
    extra = [*shlex.split(options.server), *(["--enforce-eager"] if device == "cpu" else [])]
    extra += ["--tensor-parallel-size", str(options.gpus)] if options.gpus > 1 else []
    found: dict[Row, tuple[dict[str, Any], dict[str, Any]]] = {row: ({}, {}) for row in rows}
    with closing(Client(device, plugin, work / "client.log")) as client:
        for group in planned:
            with serving(model, group, device, work, plugin, extra) as servers:
                for row in group.rows:
                    samples, tiles = rounds(row, servers, client, model, requests[row])
                    for name in samples:  # a peer that was beside several of ours keeps its first rounds
                        found[row][0].setdefault(name, samples[name])
                        found[row][1].setdefault(name, tiles[name])
    for row in rows:
        alone = [group for group in planned if row in group.rows]
        attention = {}
        if not options.no_attention and options.gpus == 1:
            for contender in made[1:]:
                attention[contender.name] = attention_of(
                    row, alone[0], contender, model, requests[row], work, device, plugin
                )
        yield case_of(row, *found[row], len(alone) > 1, attention)


def _memory(device: str) -> float:
    return _SPARE * torch.cuda.mem_get_info()[0] / 1e9 if device == "cuda" else 1e6


def versions() -> Mapping[str, str | None]:
    """With vLLM's, which a build for CPUs does not say."""
    try:
        found: str | None = metadata.version("vllm")
    except metadata.PackageNotFoundError:
        found = None
    return {**machine.versions(), "vllm": found}


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def listing(rows: Sequence[Row]) -> str:
    """Rows as a table."""
    head = ("", "requests", "new tokens", "rounds", "short list")
    body = [(row.label, str(row.requests), str(row.new_tokens), str(row.rounds), "x" * row.short) for row in rows]
    return table.columns([head, *body])


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write JSON and PNG. Exit status 1 if a server or a request fails."""
    options = parser().parse_args(arguments)
    try:
        rows = chosen(options)
    except (OSError, ValueError) as error:
        print(f"bench serve: {error}", file=sys.stderr)
        return 1
    if options.list:
        print(listing(rows))
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    document = results.new_document("serve", arguments)
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    document |= {"gpu": gpu, "commit": machine.commit(), "versions": versions(), "before": machine.gpu_state()}
    document |= {"after": None, "cases": []}
    path = results.place(options.out, document, gpu)
    try:
        with _folder(options.work) as work:
            for name in dict.fromkeys(row.model for row in rows):
                for case in measure([row for row in rows if row.model == name], options, work, device):
                    document["cases"].append(case)
                    results.save(document, path)
                    print(serve_table.case_table(case), flush=True)
    except (OSError, ValueError) as error:
        print(f"bench serve: {error}", file=sys.stderr)
        return 1
    document["after"] = machine.gpu_state()
    results.finish(document)
    results.save(document, path)
    print(serve_table.summary(document["cases"]))
    print("\n".join(["", str(path), serve_table.draw(document, path.with_suffix(".png"))]))
    return 0
