"""A model in ``bench models``: thresholds by each method, and what windows lose under them; all of it is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from skimattn.errors import ArgumentError
from skimattn.integrations.transformers import TextForward
from skimattn.sparse import (
    ModelRunner,
    Outcome,
    Quality,
    Run,
    SkipSoftmaxConfig,
    TileCounts,
    attention_modules,
    calibrate,
    policy_of,
    restore,
    sparsify,
)
from skimattn.sparse.calibration.measure import digest
from skimattn.sparse.calibration.state import State
from skimattn.sparse.policy import Phase, policies_of

from .models_decode import Batches
from .models_figures import Measured
from .models_plan import UNIFORM, Plan, methods
from .models_texts import Texts, Tokens


@dataclass(frozen=True)
class Chosen:
    """Thresholds for a target, or why there are none.

    Attributes:
        config: None: the target cannot be had.
        why: that.
        seconds: the calibration took, of which measurements that were known already took none.
        runs: of texts in it.
    """

    config: SkipSoftmaxConfig | None
    why: str
    seconds: float
    runs: int


class _Timed:
    """A runner that counts runs."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner, self.runs = runner, 0

    def run(self, sample: Sequence[int], phase: Phase) -> Run:
        self.runs += 1
        return self._runner.run(sample, phase)


class _Prompts:
    """Runs prompts; what is dropped, which costs a dense pass, is told where several layers skip alone."""

    def __init__(self, model: Any) -> None:
        self._modules = attention_modules(model)
        self._whole = TextForward(model, dropped=True, divergence=True)
        self._alone = TextForward(model, divergence=True)

    def __call__(self, sample: Sequence[int], phase: Phase) -> Outcome:
        skipping = sum(policy_of(module) is not None for module in self._modules.values())
        return (self._whole if skipping > 1 else self._alone)(sample, phase)


class Subject:
    """A model with its texts, and what was measured of it before.

    Args:
        name: of the model.
        model: of transformers, with attention of ours.
        texts: token file.
        plan: how much is run.
        folder: where measurements are kept; what was cut off goes on there.
    """

    def __init__(self, name: str, model: Any, texts: Texts, plan: Plan, folder: Path) -> None:
        """Nothing is run yet.

        Raises:
            ArgumentError: what is kept there is of another model, plan or token file.
        """
        self.name, self.model, self.texts, self.plan, self.folder = name, model, texts, plan, folder
        self.about = {"model": name, "texts": texts.digest, "plan": plan.plain, "device": _device(model)}
        self.memo = State(folder / "measured.jsonl", self.about)
        self._batches: dict[tuple[int, int], Batches] = {}
        self._forwards: dict[Phase, Any] = {}

    def batches(self, length: int, steps: int) -> Batches:
        """What decodes windows of a length; caches of prompts are kept in it."""
        key = length, steps
        if key not in self._batches:
            self._batches.clear()  # caches are large
            self._batches[key] = Batches(self.model, length, steps)
        return self._batches[key]

    # Thresholds

    def chosen(self, method: str, phase: Phase, target: float) -> Chosen:
        """Thresholds of a method for a target, on calibration windows of the full length."""
        known = self.memo.get(key := f"chosen/{phase}/{method}/{target:g}")
        if known is None:
            known = self._choose(methods(self.plan, phase)[method], phase, target)
            self.memo.put(key, known)
        config = None if known["config"] is None else SkipSoftmaxConfig(**known["config"])
        return Chosen(config, known["why"], known["seconds"], known["runs"])

    def _choose(self, quality: Quality | None, phase: Phase, target: float) -> dict[str, Any]:
        plan = self.plan
        if phase == "prefill":
            data = self.texts.windows("calibration", plan.length, plan.calibration)
        else:
            many = self.texts.windows("calibration", plan.length, plan.decode_batch)
            data = [[token for window in many for token in window]]
        runner, began = _Timed(ModelRunner(self.model, self._forward(phase))), time.monotonic()
        try:
            found = calibrate(
                self.model,
                data,
                {phase: target},
                runner=runner,
                thresholds=plan.thresholds,
                quality=quality,
                extrapolate=True,
                state=self.folder / f"calibration-{phase}.jsonl",
                about=self.about,
                progress=False,
                resamples=0,
            )
        except ArgumentError as error:
            return {"config": None, "why": str(error), "seconds": time.monotonic() - began, "runs": runner.runs}
        config = found.config.model_dump(mode="json", exclude_defaults=True)
        return {"config": config, "why": "", "seconds": time.monotonic() - began, "runs": runner.runs}

    def _forward(self, phase: Phase) -> Any:
        """What runs calibration texts; what it keeps of dense runs serves all targets of a phase."""
        if phase not in self._forwards:
            self._forwards.clear()  # what it keeps is large
            plan = self.plan
            self._forwards[phase] = (
                _Prompts(self.model)
                if phase == "prefill"
                else Batches(self.model, plan.length, plan.steps_calibrated, dropped=True)
            )
        return self._forwards[phase]

    # What windows lose

    def prefill(self, label: str, config: SkipSoftmaxConfig | None, windows: Sequence[Tokens]) -> list[Measured]:
        """Windows as prompts, each on its own.

        Args:
            label: names the configuration.
            config: None: dense.
            windows: token ids.
        """
        found = []
        for window in windows:
            known = self.memo.get(key := f"prefill/{label}/{digest(window)}")
            if known is None:
                with self._counting(config) as tiles:
                    loss = TextForward(self.model)(window, "prefill").loss
                    known = [loss, *tiles("prefill")]
                self.memo.put(key, known)
            found.append(Measured(*known))
        return found

    def decode(
        self, label: str, config: SkipSoftmaxConfig | None, windows: Sequence[Tokens], steps: int
    ) -> tuple[list[Measured], list[bool]]:
        """The last tokens of windows behind dense prompts, all windows at once; tiles are of all, told of the first.

        Returns:
            What windows lost, and of which every token was the likeliest.
        """
        known = self.memo.get(key := f"decode/{label}/{steps}/{digest([t for window in windows for t in window])}")
        if known is None:
            batches = self.batches(len(windows[0]), steps)
            tokens = torch.tensor([list(window) for window in windows], device=self.model.device)
            with self._counting(config) as tiles:
                done = batches.run(tokens)
                known = [done.nats.mean(1).tolist(), done.right.all(1).tolist(), list(tiles("decode"))]
            self.memo.put(key, known)
        losses, right, counts = known
        rows = [Measured(loss, *(counts if index == 0 else ())) for index, loss in enumerate(losses)]
        return rows, list(right)

    @contextmanager
    def _counting(self, config: SkipSoftmaxConfig | None) -> Iterator[Any]:
        """The model under a configuration; yields what tells visited and skipped tiles."""
        if config is None:
            yield lambda phase: (0, 0)
            return
        sparsify(self.model, config, count=True)
        try:
            found = (policy.collector for policy in policies_of(self.model).values())
            counters = [one for one in found if isinstance(one, TileCounts)]
            yield lambda phase: tuple(sum(int(one.total(phase)[at]) for one in counters) for at in (0, 1))
        finally:
            restore(self.model)

    def needles(self, label: str, config: SkipSoftmaxConfig | None, phase: Phase) -> list[bool]:
        """Of texts with needles, whether every token of the answer is the likeliest one."""
        asked, answers = self.texts.asked(self.plan.needles), self.texts.answers[: self.plan.needles].tolist()
        if phase == "decode":
            return self.decode(label, config, asked, max(answers))[1]
        found = []
        for window, answer in zip(asked, answers, strict=True):
            known = self.memo.get(key := f"needle/{label}/{digest(window)}")
            if known is None:
                with self._counting(config):
                    known = _is_found(self.model, window, answer)
                self.memo.put(key, known)
            found.append(bool(known))
        return found


def _is_found(model: Any, window: Tokens, answer: int) -> bool:
    from skimattn.integrations.transformers import phase

    ids = torch.tensor([window], device=model.device)
    with torch.no_grad(), phase("prefill"):
        logits = model(ids, use_cache=False, logits_to_keep=answer + 1).logits[0, :-1]
    return bool((logits.argmax(-1) == ids[0, -answer:]).all())


def _device(model: Any) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"


def method_names(subject: Subject) -> list[str]:
    """Those of the plan, with the plain one first, to which others are held."""
    return [UNIFORM, *(name for name in subject.plan.methods if name != UNIFORM)]
