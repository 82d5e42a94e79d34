"""The command line of ``skimattn``, which is also ``python -m skimattn``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from .models.calibrate import calibrate
from .models.evaluate import evaluate
from .models.generate import generate
from .models.sparsify import sparsify
from .models.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Attention kernels that skim."""


# What follows these commands is read by the build's own command line, --help too.
_FORWARDED = {"ignore_unknown_options": True, "help_option_names": list[str]()}
_arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)


def _build(words: Sequence[str], name: str) -> None:
    from skimattn.codegen import cli

    cli.command.main(cli.expand(words), prog_name=f"skimattn {name}", standalone_mode=False)


@main.command(context_settings=_FORWARDED)
@_arguments
def build(arguments: tuple[str, ...]) -> None:
    """Build kernels, as build.py does (--help: its options)."""
    _build(arguments, "build")


@main.command("list", context_settings=_FORWARDED)
@_arguments
def list_kernels(arguments: tuple[str, ...]) -> None:
    """List kernels and whether they are built: build.py --list (with --set, --sm, --only, --json, ...)."""
    _build(["--list", *arguments], "list")


@main.command(context_settings=_FORWARDED)
@_arguments
def explain(arguments: tuple[str, ...]) -> None:
    """Say whether a kernel exists, and if not why: FIELD=VALUE ..., as build.py --explain takes them."""
    _build(arguments if "--help" in arguments else ["--explain", *arguments], "explain")


@main.command()
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Write the map of tiles as a picture.")
@click.option("--seqlen", type=click.IntRange(min=1), default=2048, show_default=True, help="Queries and keys.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=1e-3, show_default=True, help="Of the skip rule.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), help="Default: a GPU with kernels, else the CPU.")
def demo(png: Path | None, seqlen: int, threshold: float, device: str | None) -> None:
    """Run one call and show its kernel, its error, its sparsity and its tiles."""
    import torch  # which --help can do without

    from ..errors import ArgumentError, BuildError, CudaError, NoKernelError
    from . import demo as script

    torch.set_num_threads(1)  # the reference works in small pieces: more threads only wait for each other
    try:
        for line in script.run(seqlen, threshold, device, png):
            click.echo(line)
    except BrokenPipeError:  # of whatever reads the output; click ends quietly
        raise
    except (ArgumentError, BuildError, CudaError, NoKernelError, ModuleNotFoundError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--clear", is_flag=True, help="Remove them.")
def cache(clear: bool) -> None:
    """List the kernels that were compiled on first use, that used last first."""
    from ..errors import BuildError
    from . import cache as kept

    try:
        for line in [kept.clear()] if clear else kept.summary():
            click.echo(line)
    except (BuildError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print sums as JSON.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw layers by steps as a picture.")
@click.option(
    "--width", type=click.IntRange(min=20), default=100, show_default=True, help="Of drawings, in characters."
)
def stats(file: Path, as_json: bool, png: Path | None, width: int) -> None:
    """Show what every layer skipped, from the FILE of a StatLog; files of other ranks beside it are added up."""
    from ..errors import ArgumentError
    from ..sparse.statlog.read import read_statistics
    from . import demo as terminal
    from . import stats as shown

    try:
        if png is not None:
            shown.write_png(png, read_statistics(file))
        if as_json:
            click.echo(json.dumps(shown.summary(read_statistics(file)), indent=1))
            return
        for line in shown.lines(file, width, terminal.shades_for(sys.stdout.encoding)):
            click.echo(line)
    except BrokenPipeError:  # of whatever reads the output; click ends quietly
        raise
    except (ArgumentError, ModuleNotFoundError, OSError) as error:
        raise click.ClickException(str(error)) from error


for _command in (calibrate, evaluate, generate, sparsify, verify):
    main.add_command(_command)
