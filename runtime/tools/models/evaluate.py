"""``skimattn eval``: benchmarks of long texts, dense beside what a configuration skips."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from .options import FILE, JSON, MODEL, READ, Command, Which, numbers, taken
from .refusing import refusing

if TYPE_CHECKING:
    from ..evaluation.engines import Engine
    from ..evaluation.tasks import Asked


@click.command("eval", cls=Command)
@MODEL
@click.option("--config", required=True, type=READ, help="The configuration: figures, or a fit for --targets.")
@click.option(
    "--tasks",
    required=True,
    metavar="NAME,...",
    help="longbench, longbench2 (which letter is likeliest), longbench2_generate (which one is written), needle, or "
    "any of lm-eval's, such as ruler.",
)
@click.option("--targets", callback=numbers(float, 0, 1), metavar="X,...", help="Shares to skip, by the fit.")
@click.option(
    "--data",
    multiple=True,
    type=READ,
    metavar="FILE...",
    help="JSON Lines in LongBench's formats, in place of its data.",
)
@click.option(
    "--lengths", callback=numbers(int, 64, 1 << 31), metavar="N,...", default="4096", show_default=True,
    help="Tokens of texts with needles, and of RULER's.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Documents of each task.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of texts with needles.")
@click.option("--max-length", type=click.IntRange(min=64), help="Tokens of a prompt with what is generated.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="That are generated. Default: what tasks say.")
@click.option("--chat", is_flag=True, help="Prompts are what a user says to a model that chats.")
@click.option("--backend", type=click.Choice(("hf", "vllm")), default="hf", show_default=True, help="Of lm-eval.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Of transformers.")
@click.option("--engine", default="{}", metavar="JSON", help="Arguments of vLLM's LLM.")
@click.option("--state", type=FILE, help="Keep results here, and go on from them.")
@click.option("--dump", type=FILE, help="Write the prompts' token ids, for python -m bench serve.")
@click.option("--plot", type=FILE, help="Draw scores over what was skipped.")
@JSON
def evaluate(
    config: Path, targets: tuple[float, ...] | None, state: Path | None, dump: Path | None, plot: Path | None,
    as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Run benchmarks of long texts with MODEL, dense and as a configuration has it, through lm-eval.

    Without --targets the configuration runs as it stands; with them its fit is asked for each.
    """
    which = taken(Which, values)
    with refusing(
        {
            "tasks": "--tasks",
            "targets": "--targets",
            "data": "--data",
            "max_length": "--max-length",
            "engine": "--engine",
        }
    ):
        from ...sparse.calibration.state import State
        from ...sparse.config.config import SkipSoftmaxConfig
        from ..evaluation import prompts, running, shown

        asked = _asked(values)
        document = SkipSoftmaxConfig.read(config)
        ways = running.ways_of(document, targets)
        if plot is not None:
            shown.check_plot()
        with _tasks_and_engine(which, asked, values) as (tasks, engine):
            about = running.settings(which.model, which.dtype, values["backend"], asked, document)
            kept = State(state, about, of="evaluation")
            if dump is not None:
                click.echo(f"{dump}: {prompts.dump(dump, tasks, engine.tokenizer, asked)} prompts", err=True)
            results = running.run(engine, tasks, ways, asked, kept, _tell)
        if plot is not None:
            shown.draw(results, plot)
    if as_json:
        click.echo(json.dumps(shown.as_values(results, about), indent=1))
    else:
        click.echo("\n".join(shown.lines(results)))


def _tell(done: int, total: int, what: str) -> None:
    click.echo(f"{done + 1} of {total}: {what}", err=True)


def _asked(values: dict[str, Any]) -> Asked:
    from ..evaluation.tasks import Asked

    names = tuple(name for name in values["tasks"].split(",") if name)
    kept = ("lengths", "limit", "seed", "max_length", "max_new_tokens", "chat")
    return Asked(names, tuple(values["data"]), **{name: values[name] for name in kept})


@contextmanager
def _tasks_and_engine(which: Which, asked: Asked, values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Engine]]:
    """Tasks, which are looked up first since that is soon done, and what runs them."""
    from ..evaluation import engines, tasks

    tasks.check()
    with TemporaryDirectory() as folder:
        engine: Engine
        if values["backend"] == "vllm":
            engine = engines.VllmEngine(which.model, which.dtype, asked.max_length, _arguments(which, values["engine"]))
        else:
            engine = engines.HfEngine(which.load(), values["batch_size"], asked.max_length)
        engine.tokenizer.save_pretrained(folder)  # RULER reads it again, wherever it came from
        yield tasks.load(asked, engine.tokenizer, folder), engine


def _arguments(which: Which, text: str) -> dict[str, Any]:
    """Of vLLM's ``LLM``."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise click.ClickException(f"--engine: expected keys and values as JSON (got {text})")
    return {"trust_remote_code": which.trust_remote_code, **found}
