"""Options that commands share: which model, which texts, how they are run, how text is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ...integrations.transformers import Loaded

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
FILE = click.Path(dir_okay=False, path_type=Path)
READ = click.Path(exists=True, dir_okay=False, path_type=Path)


class Command(click.Command):
    """A command whose ``--data`` takes several files."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn ``--data a b`` into what click can read."""
        from skimattn.codegen.cli import expand

        return super().parse_args(ctx, expand(args, ("--data",)))


def numbers(kind: type[int] | type[float], low: float, high: float) -> Callable[..., Any]:
    """A callback that reads numbers with commas between them, each at least ``low`` and below ``high``."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int | float, ...] | None:
        """Raise ``ClickException`` for what is no such list."""
        del ctx
        if value is None:
            return None
        try:
            found = tuple(kind(part) for part in value.split(","))
        except ValueError:
            found = ()
        if not found or not all(low <= one < high for one in found):
            wanted = f"numbers with commas between them, at least {low:g} and below {high:g}"
            raise click.ClickException(f"{param.opts[0]}: expected {wanted} (got {value})")
        return found

    return read


def together(*options: Callable[..., Any]) -> Decorator:
    """Several options as one decorator, in their order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


MODEL = together(
    click.argument("model"),
    click.option(
        "--dtype", type=click.Choice(("bfloat16", "float16")), default="bfloat16", show_default=True, help="Of weights."
    ),
    click.option("--device", type=click.Choice(("cpu", "cuda")), help="Default: a GPU with kernels, else the CPU."),
    click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
TEXTS = together(
    click.option(
        "--data",
        multiple=True,
        type=READ,
        metavar="FILE...",
        help='Texts, or JSON Lines (.jsonl) with "text" or "tokens". Default: made-up retrieval tasks.',
    ),
    click.option(
        "--lengths",
        callback=numbers(int, 2, 1 << 31),
        metavar="N,...",
        default="1024,2048",
        show_default=True,
        help="Tokens of the texts.",
    ),
    click.option(
        "--samples", type=click.IntRange(min=1), default=8, show_default=True, help="How many texts of each length."
    ),
    click.option("--start", type=click.IntRange(min=0), default=0, help="Tokens of the data to leave out first."),
    click.option("--seed", type=int, help="Of what is made up or drawn."),
    click.option(
        "--new-tokens",
        type=click.IntRange(min=0),
        default=32,
        show_default=True,
        help="Last tokens of a text that are decoded one by one; 0: none, so prefill alone.",
    ),
    click.option("--chunk", type=click.IntRange(min=1), help="Compute prompts in chunks of so many tokens."),
)
SAMPLING = together(
    click.option("--do-sample", is_flag=True, help="Draw tokens, in place of the likeliest ones."),
    click.option("--temperature", type=click.FloatRange(0, min_open=True), help="Of the drawing."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from so much of the probability."),
)


@dataclass(frozen=True)
class Which:
    """The model that was asked for."""

    model: str
    dtype: str
    device: str | None
    trust_remote_code: bool

    def load(self) -> Loaded:
        """Load it.

        Raises:
            ClickException: transformers finds no such model, or no tokenizer beside it.
            ArgumentError: as :func:`skimattn.integrations.transformers.load`.
        """
        import transformers

        from ...errors import ArgumentError
        from ...integrations.transformers import load
        from ..demo import pick_device

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        device, _ = pick_device(self.device)
        try:
            return load(self.model, dtype=self.dtype, device=device, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:  # of transformers, where a file is missing or means nothing
            if isinstance(error, ArgumentError):
                raise
            said = str(error).strip().partition("\n")[0]
            wanted = "a folder with a model, or a name that the hub or its cache has"
            raise click.ClickException(f"MODEL: expected {wanted} (got {self.model}: {said})") from error


@dataclass(frozen=True)
class Texts:
    """The texts that were asked for, and how they are run."""

    data: Sequence[Path]
    lengths: tuple[int, ...]
    samples: int
    start: int
    seed: int | None
    new_tokens: int
    chunk: int | None

    def read(self, loaded: Loaded, seed: int = 0) -> list[list[int]]:
        """The texts, lengths taking turns; ``seed`` where none was given. Raises as ``samples_of``."""
        from .texts import samples_of

        chosen = seed if self.seed is None else self.seed
        return samples_of(loaded, self.data, self.lengths, self.samples, start=self.start, seed=chosen)


@dataclass(frozen=True)
class Sampling:
    """How text is drawn."""

    do_sample: bool
    temperature: float | None
    top_p: float | None

    def arguments(self) -> dict[str, Any]:
        """Those of ``generate``.

        Raises:
            ClickException: an option of drawing without it.
        """
        given = {name: getattr(self, name) for name in ("temperature", "top_p") if getattr(self, name) is not None}
        if given and not self.do_sample:
            raise click.ClickException(f"--{next(iter(given)).replace('_', '-')}: expected --do-sample beside it")
        return {"do_sample": self.do_sample, **given}


def taken(kind: type[Any], values: dict[str, Any]) -> Any:
    """A group of options out of the values of a command, which loses them."""
    return kind(**{name: values.pop(name) for name in kind.__dataclass_fields__})
