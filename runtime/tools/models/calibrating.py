"""From options to a calibration, with texts held out to see whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from .options import FILE, Texts, numbers, together

if TYPE_CHECKING:
    from ...integrations.transformers import Loaded, TextForward
    from ...sparse.calibration.profile import Cost
    from ...sparse.calibration.result import Calibration
    from ...sparse.policy import Phase

Per = Literal["none", "layer", "head"]
OPTIONS = together(
    click.option("--target", type=float, help="Share of the tiles to skip, in both phases."),
    click.option("--target-prefill", type=float, help="The same of prefill; without --target, of prefill alone."),
    click.option("--target-decode", type=float, help="The same of decode; without --target, of decode alone."),
    click.option(
        "--per",
        type=click.Choice(get_args(Per)),
        default="none",
        show_default=True,
        help="Thresholds of each layer's or head's own, chosen by what they cost.",
    ),
    click.option(
        "--cost",
        type=click.Choice(("loss", "divergence", "dropped", "output")),
        default="loss",
        show_default=True,
        help="What --per makes small: the loss of next tokens; how far predictions move (fewer texts tell); the "
        "dropped probability; or the change of outputs.",
    ),
    click.option(
        "--budget",
        type=float,
        help="With --per, in place of a target: nats a token that may be added (0.003 is 0.3 % of perplexity), or "
        "what another --cost may add up to.",
    ),
    click.option(
        "--held-out",
        type=float,
        help="Texts that are kept out, and run at the end: a share of them, or all of one of --lengths.",
    ),
    click.option(
        "--thresholds", callback=numbers(float, 0, 1), metavar="X,...", help="Final thresholds to try, rising."
    ),
    click.option("--extrapolate", is_flag=True, help="Allow targets beyond what was observed."),
    click.option("--state", type=FILE, help="Keep measurements here, and go on from them."),
)


@dataclass(frozen=True)
class Asked:
    """What :data:`OPTIONS` say."""

    target: float | None
    target_prefill: float | None
    target_decode: float | None
    per: Per
    cost: Cost
    budget: float | None
    held_out: float | None
    thresholds: tuple[float, ...] | None
    extrapolate: bool
    state: Path | None

    @property
    def targets(self) -> dict[Phase, float]:
        """By phase."""
        given = {
            "prefill": self.target if self.target_prefill is None else self.target_prefill,
            "decode": self.target if self.target_decode is None else self.target_decode,
        }
        return {phase: value for phase, value in given.items() if value is not None}  # type: ignore[misc]

    def check(self, texts: Texts) -> None:
        """Refuse what contradicts itself.

        Raises:
            ClickException: the text names the option.
        """
        if not self.targets and self.budget is None:
            raise click.ClickException("--target: expected a share to skip, or --per with --budget (got neither)")
        if self.budget is not None and self.per == "none":
            raise click.ClickException("--budget: expected --per layer or --per head beside it (got --per none)")
        if self.budget is not None and len(self.phases(texts)) <= len(self.targets):
            raise click.ClickException("--budget: expected a phase that has no target (got targets for all)")
        if "decode" in self.targets and not texts.new_tokens and self.target is None:
            raise click.ClickException("--target-decode: expected --new-tokens above 0")
        for name in ("target_prefill", "target_decode", "target"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise click.ClickException(f"--{name.replace('_', '-')}: expected above 0 and below 1 (got {value:g})")
        share = self.held_out
        if share is not None and not (0 < share < 1 or (share in texts.lengths and len(texts.lengths) > 1)):
            raise click.ClickException(
                f"--held-out: expected a share below 1, or one of several --lengths (got {share:g})"
            )
        if share is not None and share < 1 and texts.samples < 2:
            raise click.ClickException("--held-out: expected --samples of at least 2")

    def phases(self, texts: Texts) -> list[Phase]:
        """Those that are calibrated."""
        wanted: list[Phase] = ["prefill", "decode"] if self.budget is not None or self.target is not None else []
        return [
            phase
            for phase in ("prefill", "decode")
            if (phase in wanted or phase in self.targets) and (phase == "prefill" or texts.new_tokens)
        ]

    def split(self, samples: Sequence[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """Texts to calibrate with, and those that are held out: the last ones of each length, or all of one."""
        share = self.held_out
        if share is None:
            return list(samples), []
        if share >= 1:
            return [one for one in samples if len(one) != share], [one for one in samples if len(one) == share]
        used: list[list[int]] = []
        held: list[list[int]] = []
        for length in dict.fromkeys(map(len, samples)):
            alike = [one for one in samples if len(one) == length]
            many = min(max(1, round(share * len(alike))), len(alike) - 1)
            used += alike[:-many]
            held += alike[-many:]
        return used, held


@dataclass(frozen=True)
class HeldOut:
    """Held-out texts of one length, in one phase.

    Attributes:
        share: of their tiles that was skipped, all together.
        added: nats a token that were added to the loss, and their standard error (None: one text).
    """

    phase: Phase
    length: int
    texts: int
    share: float
    added: float
    error: float | None


@dataclass(frozen=True)
class Found:
    """A calibration, and what it did on held-out texts."""

    calibration: Calibration
    held_out: tuple[HeldOut, ...]


def run(loaded: Loaded, asked: Asked, texts: Texts) -> Found:
    """Calibrate, and look at what was held out; the model is left as it was.

    Raises:
        ArgumentError: as :func:`skimattn.sparse.calibrate`, and for texts.
        OSError: a file cannot be read or written.
    """
    from ...integrations.transformers import TextForward
    from ...sparse.calibration.calibrate import TRIALS, Quality, calibrate
    from ...sparse.calibration.profile import TOGETHER

    used, held = asked.split(texts.read(loaded))
    forward = TextForward(
        loaded.model,
        new_tokens=texts.new_tokens or 1,
        chunk=texts.chunk,
        dropped=asked.per != "none" and asked.cost in TOGETHER,
        divergence=asked.per != "none" and asked.cost == "divergence",
    )
    phases = asked.phases(texts)
    targets = {phase: target for phase, target in asked.targets.items() if phase in phases}
    quality = None
    if asked.per != "none":
        budgets = {phase: asked.budget for phase in phases if phase not in targets and asked.budget is not None}
        quality = Quality(by=asked.per, cost=asked.cost, budget=budgets or None)
    depends: dict[str, Any] = {"name": loaded.name, "dtype": str(loaded.model.dtype), "cost": asked.cost}
    depends |= {"new tokens": texts.new_tokens, "chunk": texts.chunk}
    found = calibrate(
        loaded.model,
        used,
        targets or None,
        forward=forward,
        thresholds=asked.thresholds or TRIALS,
        quality=quality,
        extrapolate=asked.extrapolate,
        state=asked.state,
        about=depends,
    )
    return Found(found, tuple(_held_out(loaded, found, forward, held, phases)))


def _held_out(
    loaded: Loaded, found: Calibration, forward: TextForward, held: Sequence[list[int]], phases: Sequence[Phase]
) -> list[HeldOut]:
    """Each phase alone, as calibration sees it."""
    from ...sparse.calibration.runner import ModelRunner
    from ...sparse.model import disable, enable, restore, sparsify
    from ...sparse.policy import policies_of

    if not held:
        return []
    model, rows = loaded.model, []
    sparsify(model, found.config)
    try:
        runner = ModelRunner(model, forward)
        policies = policies_of(model).values()
        rules = [policy.rules for policy in policies]
        for phase in phases:
            for policy, both in zip(policies, rules, strict=True):
                policy.rules = {phase: both[phase]}
            for length in dict.fromkeys(map(len, held)):
                alike = [one for one in held if len(one) == length]
                runs = [runner.run(one, phase) for one in alike]
                disable(model)
                dense = [forward(one, phase).loss for one in alike]
                enable(model)
                counts = sum(one.sum(0) for run in runs for one in run.counts.values())
                added = [(run.loss or 0.0) - (base or 0.0) for run, base in zip(runs, dense, strict=True)]
                mean, error = mean_and_error(added)
                visited, skipped = (int(one) for one in counts)
                rows.append(HeldOut(phase, length, len(alike), skipped / max(visited, 1), mean, error))
    finally:
        restore(model)
    return rows


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error; None for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def lines(found: Found) -> list[str]:
    """What was found, as tables."""
    from ...sparse.tables import percent, table

    text = str(found.calibration).splitlines()
    if found.held_out:
        targets = found.calibration.config.target_sparsity
        rows = []
        for one in found.held_out:
            target = targets.get(one.phase)
            error = "" if one.error is None else f" +- {one.error:.4f}"
            wanted = percent(target if isinstance(target, float) else None)
            cells = (one.phase, str(one.length), str(one.texts), wanted, percent(one.share), f"{one.added:+.4f}{error}")
            rows.append(cells)
        head = ("held out", "tokens", "texts", "target", "skipped", "nats added")
        text += ["", *table(head, rows)]
    return text


def as_values(found: Found, section: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain values, with the configuration."""
    phases: dict[str, Any] = {}
    config = found.calibration.config
    for phase, points in found.calibration.points.items():
        values: dict[str, Any] = {
            "target": config.target_sparsity.get(phase),
            "fit": config.fit[phase].model_dump(mode="json"),
            "public_fit": config.public_fit[phase].model_dump(mode="json"),
            "points": len(points),
        }
        chosen = found.calibration.chosen.get(phase)
        if chosen is not None:
            values["chosen"] = {"units": len(chosen.profile.units), "skipped": chosen.share, "cost": chosen.cost}
        values["held_out"] = [
            {name: value for name, value in vars(one).items() if name != "phase"}
            for one in found.held_out
            if one.phase == phase
        ]
        phases[phase] = values
    return {"phases": phases, "sparse_attention_config": dict(section)}
