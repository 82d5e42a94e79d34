"""How commands refuse: one line that names the option."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click

_EXTRAS = {
    "transformers": "hf",
    "accelerate": "hf",
    "gguf": "hf",
    "pydantic": "calibrate",
    "yaml": "calibrate",
    "matplotlib": "calibrate",
    **dict.fromkeys(("lm_eval", "datasets", "jieba", "fuzzywuzzy", "rouge", "nltk", "wonderwords"), "eval"),
}
# What skimattn calls things, and the options that they came from.
_OPTIONS = {
    "targets.prefill": "--target-prefill",
    "targets.decode": "--target-decode",
    "targets": "--target",
    "quality.budget.prefill": "--budget",
    "quality.budget.decode": "--budget",
    "thresholds": "--thresholds",
    "points": "--thresholds",
    "state": "--state",
    "lengths": "--lengths",
    "length": "--lengths",
    "samples": "--lengths",
    "sample": "--lengths",
    "tokens": "--data",
    "count": "--samples",
    "model": "MODEL",
    "dtype": "--dtype",
    "config": "--config",
}


@contextmanager
def refusing(options: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn what can go wrong into a line, and warnings into notes on standard error.

    Args:
        options: other names that errors begin with, and the options that they came from.

    Raises:
        ClickException: instead of refusals, missing packages, and files that cannot be read.
    """
    from ...errors import ArgumentError, BuildError, CudaError, NoKernelError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            yield
    except BrokenPipeError:  # of whatever reads the output; click ends quietly
        raise
    except ModuleNotFoundError as error:
        raise click.ClickException(_missing(error)) from error
    except ArgumentError as error:
        raise click.ClickException(_named(str(error), {**_OPTIONS, **(options or {})})) from error
    except (BuildError, CudaError, NoKernelError, ImportError, OSError) as error:
        raise click.ClickException(" ".join(str(error).split())) from error


def _note(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    from ...sparse.warning import SparseWarning

    if issubclass(category, SparseWarning):  # what other libraries warn of is not for whoever types a command
        click.echo(f"note: {' '.join(str(message).split())}", err=True)


def _missing(error: ModuleNotFoundError) -> str:
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    text = str(error)
    return (
        text if extra is None or "pip install" in text else f"{error.name} is missing: pip install 'skimattn[{extra}]'"
    )


def _named(text: str, options: Mapping[str, str]) -> str:
    key, colon, rest = text.partition(": ")
    return f"{options.get(key, key)}{colon}{rest}".replace("extrapolate=True", "--extrapolate")
