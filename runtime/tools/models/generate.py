"""``skimattn generate``: text from a model that skips."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .options import FILE, MODEL, READ, SAMPLING, Command, Sampling, Which, taken
from .refusing import refusing


@click.command(cls=Command)
@MODEL
@click.option("--prompt", help="A text, which goes on.")
@click.option("--prompt-file", type=READ, help="The same from a file.")
@click.option("--chat", is_flag=True, help="The prompt is what a user says to a model that chats.")
@click.option("--config", type=READ, help="The configuration. Default: that of MODEL's config.json, else dense.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="At most.")
@SAMPLING
@click.option("--seed", type=int, help="Of the drawing.")
@click.option(
    "--stats", type=FILE, help="Write a StatLog of every step. Default: where the configuration says, if it does."
)
def generate(
    prompt: str | None,
    prompt_file: Path | None,
    chat: bool,
    config: Path | None,
    max_new_tokens: int,
    seed: int | None,
    stats: Path | None,
    **values: Any,
) -> None:
    """Generate text with MODEL on standard output, as it comes."""
    which, sampling = (taken(kind, values) for kind in (Which, Sampling))
    sampling.arguments()  # refuses early
    if (prompt is None) == (prompt_file is None):
        raise click.ClickException("--prompt: expected either it or --prompt-file (got both or neither)")
    with refusing({"model": "--stats"} if stats is not None else {}):
        text = prompt if prompt_file is None else prompt_file.read_text(encoding="utf-8", errors="replace")
        assert text is not None
        loaded = which.load()
        from . import generating

        skips = _sparsified(loaded.model, config)
        if stats is not None and not skips:
            raise click.ClickException(
                "--stats: expected --config, or a MODEL with a configuration, since dense counts nothing"
            )
        stats = stats or (_named_in(loaded.model) if skips else None)
        tokens = generating.prompt_of(loaded, text, chat)
        start = time.perf_counter()
        with generating.logged(loaded, stats, tokens.shape[1]):
            made = generating.stream(
                loaded, tokens, max_new_tokens, sampling, seed, lambda part: click.echo(part, nl=False)
            )
        seconds = time.perf_counter() - start
    click.echo()
    said = f"{tokens.shape[1]} tokens, then {made} in {seconds:.1f} s" + ("" if skips else ", dense")
    click.echo(said + (f"; skimattn stats {stats} shows what was skipped" if stats else ""), err=True)


def _sparsified(model: Any, config: Path | None) -> bool:
    """Whether it skips now."""
    from ...sparse.config.dialects import KEY, is_ours
    from ...sparse.model import sparsify

    if config is None and not is_ours(getattr(model.config, KEY, None)):
        return False
    sparsify(model, config)
    return True


def _named_in(model: Any) -> Path | None:
    """The file for statistics that the configuration of a model names."""
    from ...sparse.model import config_of

    path = config_of(model).stat_log_path
    return None if path is None else Path(path)
