"""``skimattn sparsify``: a model with its configuration, as a folder that others load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from . import calibrating
from .options import JSON, MODEL, READ, SAMPLING, TEXTS, Command, Sampling, Texts, Which, taken
from .refusing import refusing


@click.command(cls=Command)
@MODEL
@click.option(
    "--export", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder that is written."
)
@click.option("--config", type=READ, help="The configuration. Without one it calibrates, as calibrate does:")
@calibrating.OPTIONS
@TEXTS
@click.option("--prompt", help="Show how this goes on, dense and sparse, for --new-tokens tokens.")
@SAMPLING
@JSON
def sparsify(export: Path, config: Path | None, prompt: str | None, as_json: bool, **values: Any) -> None:
    """Write MODEL with a configuration: weights, config.json with sparse_attention_config, tokenizer."""
    kinds = (Which, Texts, calibrating.Asked, Sampling)
    which, texts, asked, sampling = (taken(kind, values) for kind in kinds)
    sampling.arguments()  # refuses early
    if config is None:
        asked.check(texts)
    elif asked.targets or asked.budget is not None:
        raise click.ClickException("--config: expected no target and no budget beside it, since it has its own")
    if export.exists() and Path(which.model).exists() and export.samefile(which.model):
        raise click.ClickException(f"--export: expected another folder than MODEL's (got {export})")
    with refusing({f"{export}": "--export"}):
        from ... import sparse
        from .generating import continued

        loaded = which.load()
        found = None if config is not None else calibrating.run(loaded, asked, texts)
        if found is not None and not as_json:
            click.echo("\n".join(calibrating.lines(found)))
        sparse.sparsify(loaded.model, config if found is None else found.calibration.config)
        if prompt is not None:
            for way, switch in (("dense", sparse.disable), ("sparse", sparse.enable)):
                switch(loaded.model)
                text = continued(loaded, prompt, texts.new_tokens, sampling, texts.seed)
                click.echo(f"{way}: {text!r}", err=as_json)
        sparse.save_pretrained(loaded.model, export)
        loaded.tokenizer.save_pretrained(export)
        section = sparse.export_config(loaded.model)
    if as_json:
        click.echo(json.dumps({"folder": str(export), "sparse_attention_config": section}, indent=1))
    else:
        files = ", ".join(sorted(file.name for file in export.iterdir()))
        click.echo(f"{export}: {files}")
