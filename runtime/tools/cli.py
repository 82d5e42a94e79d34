"""The command line of ``python -m skimattn``."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Attention kernels that skim. Kernels are built by build.py (installed: skimattn-build)."""


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
