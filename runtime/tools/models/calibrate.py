"""``skimattn calibrate``: from a model, texts and a target to a configuration."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from . import calibrating
from .options import FILE, JSON, MODEL, TEXTS, Command, Texts, Which, taken
from .refusing import refusing

_YAML = (".yaml", ".yml")
_KINDS = (".json", *_YAML)


@click.command(cls=Command)
@MODEL
@calibrating.OPTIONS
@TEXTS
@click.option("--plot", type=FILE, metavar="PNG", help="Draw points and fits.")
@click.option("--out", type=FILE, help="Write the configuration (.json or .yaml), for sparsify and verify.")
@JSON
def calibrate(plot: Path | None, out: Path | None, as_json: bool, **values: Any) -> None:
    """Find the thresholds with which MODEL skips a share of its tiles, or stays within a budget.

    MODEL is a folder, a folder with one .gguf file, or a name of the hub.
    """
    which, texts, asked = (taken(kind, values) for kind in (Which, Texts, calibrating.Asked))
    asked.check(texts)
    check_out(out)
    with refusing():
        from ...sparse.calibration.plot import check as check_plot

        if plot is not None:
            check_plot()
        loaded = which.load()
        start = time.perf_counter()
        found = calibrating.run(loaded, asked, texts)
        seconds = time.perf_counter() - start
        section = section_for(loaded.model, found.calibration.config)
        if out is not None:
            write(out, section)
        if plot is not None:
            found.calibration.plot(plot)
    if as_json:
        click.echo(json.dumps({"seconds": round(seconds, 1), **calibrating.as_values(found, section)}, indent=1))
        return
    for line in calibrating.lines(found):
        click.echo(line)
    written = ", ".join(str(file) for file in (out, plot) if file is not None)
    click.echo(f"{seconds:.0f} s" + (f"; written: {written}" if written else "; --out FILE writes the configuration"))


def check_out(out: Path | None) -> None:
    """Refuse a name before hours are spent.

    Raises:
        ClickException: it says no format, or its folder is not there.
    """
    if out is None:
        return
    if out.suffix not in _KINDS:
        raise click.ClickException(f"--out: expected a name that ends in {', '.join(_KINDS)} (got {out})")
    if not out.parent.is_dir():
        raise click.ClickException(f"--out: expected a folder that is there (got {out.parent})")


def section_for(model: Any, config: Any) -> dict[str, Any]:
    """What ``config.json`` holds under ``sparse_attention_config``, of a model that need not be sparsified."""
    from ...sparse.config.export import section_of
    from ...sparse.modules import attention_modules

    classes = (type(module).__name__ for module in attention_modules(model, config.targets).values())
    return section_of(config, tuple(dict.fromkeys(classes)))


def write(file: Path, section: Mapping[str, Any]) -> None:
    """Write a configuration as JSON or YAML, as the name says.

    Raises:
        OSError: it cannot be written.
    """
    document = {"sparse_attention_config": section}
    if file.suffix in _YAML:
        import yaml

        text = yaml.safe_dump(document, sort_keys=False)
    else:
        text = json.dumps(document, indent=2) + "\n"
    file.write_text(text, encoding="utf-8")
