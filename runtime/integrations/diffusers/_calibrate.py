"""``calibrate``: requests of a pipeline at trial thresholds, and a configuration for each of its transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import expected
from ...sparse.calibration.calibrate import TRIALS
from ...sparse.calibration.calibrate import calibrate as calibrate_model
from ...sparse.calibration.progress import Progress
from ...sparse.calibration.result import Calibration
from ...sparse.calibration.runner import Outcome, Sample
from ...sparse.policy import Phase, computed_dense, policies_of
from ._attention import watching_keys
from ._families import family_of
from ._models import _ATTRIBUTE, restore, sparsify, transformers_of

_SEED = 0  # of a request without a generator
_ANY = 0.5  # a threshold: trials put theirs in its place


def calibrate(
    pipe: Any,
    requests: Sequence[Mapping[str, Any]],
    target: float,
    *,
    initial_disabled_steps: int = 0,
    thresholds: Sequence[float] = TRIALS,
    per_layer: bool = False,
    extrapolate: bool = False,
    state: str | Path | None = None,
    progress: bool | Progress = True,
) -> dict[str, Calibration]:
    """Find out what thresholds skip in runs of a pipeline, and choose those that reach a share.

    Every request runs once at each threshold, for each transformer in turn, while the others are dense. The pipeline is
    left as it was. ``sparsify(pipe, {name: one.config for name, one in found.items()})`` takes the result; dense steps
    have to be told there again.

    Args:
        pipe: a pipeline that is not sparsified.
        requests: what is handed to it, ``pipe(**request)``: pictures of the sizes that thresholds have to hold for, of
            several if they have to hold for several. Latents come out unless ``output_type`` is in it. A ``generator``
            begins each run in the state that it has now, and is in it at the end; without one the runs are seeded.
        target: the share of the visited tiles that is skipped, in steps that are not dense.
        initial_disabled_steps: first steps that are dense, and do not count; some have to be left.
        thresholds: as :func:`skimattn.sparse.calibrate` takes them, as all that follows.
        per_layer: likewise.
        extrapolate: likewise.
        state: likewise, a folder, with a file for each transformer; that of other requests is refused.
        progress: likewise.

    Returns:
        A calibration by component, such as ``transformer`` and ``transformer_2``.

    Raises:
        ArgumentError: the pipeline is sparsified, a request is no mapping, as :func:`sparsify`, or as
            :func:`skimattn.sparse.calibrate`, as for a transformer that no request reaches.
    """
    transformers = transformers_of(pipe)
    if any(_ATTRIBUTE in one.__dict__ for one in transformers.values()) or isinstance(pipe, torch.nn.Module):
        raise expected("pipe", "a pipeline that is not sparsified (restore it first)", type(pipe).__name__)
    runs = _Runs(pipe, requests, initial_disabled_steps)
    found = {}
    for name, transformer in transformers.items():
        sparsify(pipe, {"threshold": _ANY})
        try:
            with _alone(transformers, transformer):
                found[name] = calibrate_model(
                    transformer,
                    [[index] for index in range(len(requests))],
                    {"prefill": target},
                    forward=runs,
                    modules=family_of(name, transformer).targets,
                    thresholds=thresholds,
                    per_layer=per_layer,
                    extrapolate=extrapolate,
                    state=None if state is None else Path(state) / f"{name}.jsonl",
                    about={"component": name, "initial_disabled_steps": initial_disabled_steps, **runs.about},
                    progress=progress,
                )
        finally:
            restore(pipe)
    return found


@contextmanager
def _alone(transformers: Mapping[str, torch.nn.Module], one: torch.nn.Module) -> Iterator[None]:
    """The other transformers are dense."""
    with ExitStack() as stack:
        for other in transformers.values():
            if other is not one:
                stack.enter_context(computed_dense(other))
        yield


class _Runs:
    """Runs a request of a pipeline, as a calibration wants it: the same noise each time."""

    def __init__(self, pipe: Any, requests: Sequence[Mapping[str, Any]], dense: int) -> None:
        """Nothing is run yet."""
        for index, request in enumerate(requests):
            if not isinstance(request, Mapping):
                raise expected(f"requests[{index}]", "what pipe(**request) takes, a mapping", type(request).__name__)
        if dense < 0:
            raise expected("initial_disabled_steps", "0 or more", dense)
        self._pipe, self._dense = pipe, dense
        self._requests = [{"output_type": "latent", **request} for request in requests]
        self._states = [_states(request.get("generator")) for request in self._requests]
        pairs = zip(self._requests, self._states, strict=True)
        self.about = {"requests": [_digest(pair) for pair in pairs]}

    def __call__(self, sample: Sample, phase: Phase) -> Outcome:
        """The request whose number the sample is."""
        del phase
        request = dict(self._requests[sample[0]])
        if request.get("generator") is None:
            request["generator"] = torch.Generator().manual_seed(_SEED + sample[0])
        try:
            with watching_keys() as keys, torch.no_grad(), self._dense_steps(request):
                self._pipe(**request)
        finally:
            for generator, state in zip(_generators(request["generator"]), self._states[sample[0]], strict=False):
                generator.set_state(state)
        return Outcome(length=max(keys, default=None))

    @contextmanager
    def _dense_steps(self, request: dict[str, Any]) -> Iterator[None]:
        """What skips is dense until so many steps have ended."""
        transformers = transformers_of(self._pipe).values()
        held = [policy for one in transformers for policy in policies_of(one).values() if policy.enabled]
        theirs = request.get("callback_on_step_end")

        def skip(enabled: bool) -> None:
            for policy in held:
                policy.enabled = enabled

        def on_step_end(pipe: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> Any:
            skip(step + 1 >= self._dense)
            return arguments if theirs is None else theirs(pipe, step, timestep, arguments)

        if self._dense:
            request["callback_on_step_end"] = on_step_end
        skip(not self._dense)
        try:
            yield
        finally:
            skip(True)


def _generators(given: Any) -> list[torch.Generator]:
    return [given] if isinstance(given, torch.Generator) else list(given or ())


def _states(given: Any) -> list[torch.Tensor]:
    return [one.get_state() for one in _generators(given)]


def _digest(value: Any) -> str:
    """Names what a run depends on; of functions only their name is known."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()[:16]


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"{plain.dtype} {list(plain.shape)}".encode()
        yield plain.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield str(name).encode()
            yield from _parts(value[name])
    elif isinstance(value, list | tuple):
        yield f"{len(value)}".encode()
        for one in value:
            yield from _parts(one)
    elif isinstance(value, torch.Generator):
        yield b"generator"  # its state is told apart
    elif value is None or isinstance(value, str | int | float | bool):
        yield repr(value).encode()
    else:
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}".encode()
