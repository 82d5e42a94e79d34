"""The command line of ``build.py`` and of the installed ``skimattn-build``."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from . import matrix, model, output, pipeline, places, sets
from .errors import ArgumentError, BuildError
from .features import BY_NAME, Value
from .local_gpu import local_archs
from .metadata import listing
from .spec import KernelSpec
from .toolchain import COMPILERS, find_toolchain
from .verified import trial_of, trials_of

_LISTS = ("--sm", "--only", "--explain")  # options that take all values up to the next option

_NAMED = 4  # kernels of a long list that are named

# What each thing to do goes by. Anything else beside it would change nothing, so it is refused.
_CHOICE = ("sm", "set_name", "only", "model_path", "out")
_GOES_BY: Mapping[str, tuple[str, ...]] = {
    "explain": ("explain",),
    "clean": ("clean", "sm", "out", "dry_run"),
    "list_": ("list_", "as_json", *_CHOICE),
}
_BUILD = (*_CHOICE, "compiler", "jobs", "lineinfo", "dry_run")


def expand(arguments: Sequence[str], lists: Collection[str] = _LISTS) -> list[str]:
    """Turn ``--sm 90 100`` into ``--sm 90 --sm 100``, which click can read; ``lists`` are the options that may."""
    expanded: list[str] = []
    flag, values = "", 0
    for argument in (*arguments, "--"):
        if not argument.startswith("-"):
            expanded += [flag, argument] if flag else [argument]
            values += 1
            continue
        if flag and not values:
            raise click.UsageError(f"{flag} expects at least one value")
        name, equals, value = argument.partition("=")
        flag, values = (name, int(bool(equals))) if name in lists else ("", 0)
        expanded += [name, value] if flag and equals else [] if flag else [argument]
    return expanded[:-1]


def parse_arch(text: str) -> str:
    """``90``, ``90a``, ``sm90`` or ``sm_90a`` -> ``sm90``; refuses an architecture without specs."""
    match = re.fullmatch(r"(?:sm_?)?(\d+)a?", text)
    if match is None:
        raise click.UsageError(f"--sm: expected an architecture such as 90 (got {text!r})")
    arch = f"sm{match.group(1)}"
    known = BY_NAME["arch"].values
    if arch not in known:
        exist = ", ".join(map(str, known))
        raise click.UsageError(
            f"--sm {text}: {arch} has no kernel specs yet (specs exist for {exist}); nothing was built"
        )
    return arch


def parse_fields(items: Sequence[str], option: str) -> dict[str, list[str]]:
    """``("dtype=bf16,fp16", "head_dim=128")`` -> field to spelled values; refuses what is no field."""
    fields: dict[str, list[str]] = {}
    for item in items:
        name, equals, values = item.partition("=")
        if not equals or not values:
            raise click.UsageError(f"{option}: expected FIELD=VALUE (got {item!r})")
        if name not in BY_NAME:
            raise click.UsageError(f"{option}: unknown field {name!r} (expected one of {', '.join(BY_NAME)})")
        fields.setdefault(name, []).extend(values.split(","))
    return fields


def refuse_idle(context: click.Context) -> None:
    """Refuse options that would be ignored beside the others."""
    given = {
        str(parameter.name): parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    }
    to_do = next((name for name in _GOES_BY if name in given), "")
    idle = [option for name, option in given.items() if name not in _GOES_BY.get(to_do, _BUILD)]
    if idle:
        why = f"{given[to_do]} does not go with {', '.join(idle)}" if to_do else f"{idle[0]} belongs to --list"
        raise click.UsageError(f"{why}; nothing was done")
    if "set_name" in given and "model_path" in given:
        raise click.UsageError("--model does not go with --set: either chooses the kernels; nothing was done")


def parse_archs(sm: Sequence[str]) -> Sequence[str]:
    """The architectures that ``--sm`` names."""
    return [parse_arch(item) for text in sm for item in text.split(",")]


def select(
    set_name: str, sm: Sequence[str], only: Sequence[str], need: model.Need | None = None
) -> tuple[KernelSpec, ...]:
    """The specs of ``--set``, or of a model, that ``--sm`` and ``--only`` leave; an empty choice is refused."""
    archs = parse_archs(sm) or ([] if need is None else local_archs())
    wanted: dict[str, list[Value]] = {}
    for name, values in parse_fields(only, "--only").items():
        try:
            wanted[name] = [matrix.parse_value(BY_NAME[name], value) for value in values]
        except ValueError as error:
            raise click.UsageError(f"--only: {error}") from error
    chosen = sets.specs(set_name if need is None else "full", wanted, archs)
    if need is not None:
        chosen = tuple(spec for spec in chosen if spec in need.specs)
    if not chosen:
        asked = " ".join((*(("--sm", *sm) if sm else ()), "--only", *only))
        if need is not None:
            raise click.UsageError(f"nothing that the model needs matches {asked}")
        raise click.UsageError(f"nothing in --set {set_name} matches {asked}: {_where_else(wanted, archs)}")
    return chosen


def _where_else(wanted: Mapping[str, Sequence[Value]], archs: Sequence[str]) -> str:
    """Where kernels like those wanted are: in the full set, or of other architectures."""
    if more := len(sets.specs("full", wanted, archs)):
        return f"--set full has {more} such kernels"
    others = dict.fromkeys(spec.arch for spec in sets.specs("full", wanted))
    return f"kernels of {', '.join(others)} do" if others else "no kernel of the matrix does, see --explain"


def show_explanation(items: Sequence[str]) -> int:
    """Print whether the kernel is accepted, or which rule rejects it and why; returns the exit status."""
    fields = parse_fields(items, "--explain")
    for name, values in fields.items():
        if len(values) > 1:
            raise click.UsageError(f"--explain: {name}: expected one value (got {', '.join(values)})")
    verdict = matrix.judge_values({name: values[0] for name, values in fields.items()})
    if isinstance(verdict, matrix.Rejected):
        click.echo(f"rejected by rule {verdict.rule}: {verdict.reason}")
        return 1
    spec = verdict.spec
    holding = [name for name in sets.SETS if spec in sets.specs(name)]
    click.echo(f"accepted: {spec.name}\nin sets: {', '.join(holding)}\nverified: {trial_of(spec).result}")
    click.echo(f"build it: {sets.build_command(spec)}")
    return 0


def show_list(specs: Sequence[KernelSpec], folder: Path, as_json: bool) -> None:
    """Print the matrix: as a table for people, or as a JSON array."""
    kernels, sources = pipeline.built(folder), pipeline.Sources()
    stale = {spec for spec, kernel in kernels.items() if pipeline.is_stale(kernel, sources)}
    rows = [listing(spec, kernels.get(spec), spec in stale) for spec in specs]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max(len(row["name"]) for row in rows)
    click.echo(f"{'kernel':{width}}  {'tile':>9}  group  threads  registers  smem bytes  tmem  spills  built")
    for row in rows:
        tile = f"{row['tile_m']}x{row['tile_n']}"
        registers, spills = ("-" if row[name] is None else row[name] for name in ("registers", "spill_bytes"))
        click.echo(
            f"{row['name']:{width}}  {tile:>9}  {row['group_rows']:>5}  {row['threads']:>7}  {registers:>9}"
            f"  {row['smem_bytes']:>10}  {row['tmem_columns']:>4}  {spills:>6}  {_built_word(row)}"
        )
    for trial in trials_of(specs):
        click.echo(f"{trial.kernels}: {trial.result}")
    outdated = sum(row["stale"] for row in rows)
    more = f", {outdated} stale: built from other sources than those of now" if outdated else ""
    click.echo(f"{len(rows)} kernels, {sum(row['built'] for row in rows)} built in {folder}{more}")


def _built_word(row: Mapping[str, object]) -> str:
    return "yes" if row["built"] else "stale" if row["stale"] else "no"


def run_build(build: pipeline.Build, specs: Sequence[KernelSpec], jobs: int, dry_run: bool) -> int:
    """Build, or say what would be built; returns the exit status."""
    if dry_run:
        stale = build.plan(specs).stale
        for spec, reason in stale.items():
            click.echo(f"{spec.name}: {reason}")
        seconds = build.estimate(len(stale), jobs)
        click.echo(f"{len(stale)} of {len(specs)} kernels would be compiled, about {seconds:.0f} s; nothing written")
        return 0
    start = time.perf_counter()
    outcome = build.run(specs, jobs)
    fresh = len(specs) - len(outcome.compiled) - len(outcome.failed)
    click.echo(
        f"{len(outcome.compiled)} compiled, {fresh} up to date, {len(outcome.failed)} failed in "
        f"{time.perf_counter() - start:.1f} s; {len(outcome.rows)} kernels in {build.folder / output.METADATA}"
    )
    if outcome.dropped:
        names = ", ".join(outcome.dropped[:_NAMED]) + (", ..." if len(outcome.dropped) > _NAMED else "")
        count = len(outcome.dropped)
        click.echo(f"left out, because the sources have changed since they were built: {count} kernels ({names})")
    if not places.is_found(build.folder):
        click.echo(f"calls do not look in {build.folder}; to make them: {places.setting(build.folder)}")
    if outcome.failed:
        click.echo(f"failed: {', '.join(outcome.failed)}", err=True)
    return 1 if outcome.failed else 0


def run_clean(folder: Path, archs: Sequence[str], dry_run: bool) -> None:
    """Remove what builds made, of some architectures or everything, or say what that would be."""
    removal = output.removal(folder, archs)
    of = f" of {', '.join(archs)}" if archs else ""
    if dry_run:
        for path in removal.files:
            click.echo(path.relative_to(folder))
        click.echo(f"{len(removal.files)} files{of} would be removed from {folder}; nothing was")
        return
    removal.run()
    left = "" if removal.kept is None else f"; {len(removal.kept)} kernels stay in {folder / output.METADATA}"
    click.echo(f"{len(removal.files)} files{of} removed from {folder}{left}")


def _show_need(path: Path, to_stderr: bool) -> model.Need:
    """Read what a model needs, and say what decided."""
    need = model.read(path)
    for reason in need.reasons:
        click.echo(reason, err=to_stderr)
    return need


_MODEL_HELP = "Instead of a set: what a model calls, by its config.json or the folder with it."
_OUT_HELP = f"Default: {places.VARIABLE}, or generated/ of the checkout, where calls look; of a wheel ./generated."


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--sm", multiple=True, metavar="ARCH ...", help="Architectures. Default: all; for --model the GPUs here.")
@click.option("--set", "set_name", type=click.Choice(sets.SETS), default="default", show_default=True)
@click.option("--only", multiple=True, metavar="FIELD=VALUE[,VALUE] ...", help="Keep these kernels of the set.")
@click.option("--model", "model_path", type=click.Path(exists=True, path_type=Path), help=_MODEL_HELP)
@click.option("--compiler", type=click.Choice(COMPILERS), default="nvrtc", show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=None, help="Compilers at once. Default: one per core.")
@click.option("--out", type=click.Path(path_type=Path), help=_OUT_HELP)
@click.option("--lineinfo", is_flag=True, help="Line tables for profilers and compute-sanitizer.")
@click.option("--dry-run", is_flag=True, help="Say what would be compiled (with --clean: removed); write nothing.")
@click.option("--list", "list_", is_flag=True, help="Print the kernels of the set; build nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --list: a JSON array.")
@click.option("--explain", multiple=True, metavar="FIELD=VALUE ...", help="Say whether this kernel exists, or why not.")
@click.option("--clean", is_flag=True, help="Remove what builds made in --out, of --sm if named; build nothing.")
@click.pass_context
def command(
    context: click.Context,
    sm: tuple[str, ...],
    set_name: str,
    only: tuple[str, ...],
    model_path: Path | None,
    compiler: str,
    jobs: int | None,
    out: Path | None,
    lineinfo: bool,
    dry_run: bool,
    list_: bool,
    as_json: bool,
    explain: tuple[str, ...],
    clean: bool,
) -> None:
    """Build attention kernels: render a source per kernel, compile, collect metadata.json."""
    refuse_idle(context)
    try:
        folder = (out or places.default_output()).absolute()
        if explain:
            sys.exit(show_explanation(explain))
        if clean:
            run_clean(folder, parse_archs(sm), dry_run)
            return
        need = None if model_path is None else _show_need(model_path, to_stderr=as_json)
        specs = select(set_name, sm, only, need)
        if list_:
            show_list(specs, folder, as_json)
        else:
            chosen = pipeline.Build(folder, find_toolchain(compiler, lineinfo))
            sys.exit(run_build(chosen, specs, jobs or len(os.sched_getaffinity(0)), dry_run))
    except BrokenPipeError:  # of whatever reads the output; click ends quietly
        raise
    except (ArgumentError, BuildError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(": ".join(map(str, filter(None, (error.filename, error.strerror))))) from error


def main() -> None:
    """Run the command on ``sys.argv``. Exit status: 0 done, 1 a kernel failed, 2 wrong usage."""
    try:
        arguments = expand(sys.argv[1:])
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    command(arguments)
