"""``skimattn verify``: a model as a configuration has it, beside itself dense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .options import JSON, MODEL, READ, TEXTS, Command, Texts, Which, taken
from .refusing import refusing

_SEED = 1000  # other made-up texts than those of calibrate


@click.command(cls=Command)
@MODEL
@click.option("--config", type=READ, help="The configuration. Default: that of MODEL's own config.json.")
@TEXTS
@click.option(
    "--max-perplexity-change",
    type=click.FloatRange(min=0),
    metavar="PERCENT",
    help="Exit with status 1 if the perplexity of a phase rises by more.",
)
@JSON
def verify(config: Path | None, max_perplexity_change: float | None, as_json: bool, **values: Any) -> None:
    """Run MODEL dense and as a configuration has it on the same texts, and show what differs.

    Texts should be others than those of the calibration: --start leaves tokens of the data out.
    """
    which, texts = (taken(kind, values) for kind in (Which, Texts))
    with refusing():
        from ...integrations.transformers import compare
        from ...sparse.calibration.progress import shown
        from ...sparse.model import restore, sparsify
        from . import verifying

        loaded = which.load()
        samples = texts.read(loaded, _SEED)
        sparsify(loaded.model, config)
        with shown(True) as tell:
            found = compare(loaded.model, samples, new_tokens=texts.new_tokens, chunk=texts.chunk, progress=tell)
        rules = verifying.rules_of(loaded.model)
        restore(loaded.model)
    summaries = verifying.summaries(found)
    if as_json:
        click.echo(json.dumps(verifying.as_values(found, summaries, rules), indent=1))
    else:
        for line in verifying.lines(found, summaries, rules):
            click.echo(line)
    worst = max(one.change for one in summaries if one.length is None)
    if max_perplexity_change is not None and 100 * worst > max_perplexity_change:
        raise click.ClickException(
            f"--max-perplexity-change: expected at most {max_perplexity_change:g} % (got {100 * worst:.3g} %)"
        )
