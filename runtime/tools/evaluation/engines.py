"""What lm-eval runs models on: transformers and vLLM, each dense or as a configuration has it."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import expected
from ...sparse.config.config import SkipSoftmaxConfig
from ...sparse.config.dialects import OWN
from ...sparse.policy import PHASES, Phase

if TYPE_CHECKING:
    from ...integrations.transformers import Loaded

Tiles = Mapping[Phase, tuple[int, int]]  # visited and skipped ones
_SETTLE = 1.0  # seconds after which vLLM's tiles are those of all that was run


class Running(Protocol):
    """A model that runs dense or in one way."""

    lm: Any  # of lm-eval

    def tiles(self) -> Tiles:
        """What was counted since it began."""
        ...


class Engine(Protocol):
    """Runs a model in several ways, one after the other."""

    tokenizer: Any

    @contextmanager
    def running(self, config: SkipSoftmaxConfig | None) -> Iterator[Running]:
        """The model as a configuration has it; None: dense."""
        ...


class HfRunning:
    """A model of transformers."""

    def __init__(self, lm: Any, model: Any, skips: bool) -> None:
        """Keep them."""
        self.lm, self._model, self._skips = lm, model, skips

    def tiles(self) -> Tiles:
        """Of all layers; nothing where the model is dense."""
        from ...sparse.report import summary

        found: dict[Phase, tuple[int, int]] = {}
        for row in summary(self._model).rows if self._skips else ():
            visited, skipped = found.get(row.phase, (0, 0))
            found[row.phase] = visited + (row.visited or 0), skipped + (row.skipped or 0)
        return found


class HfEngine:
    """lm-eval's back end for transformers, on a model whose attention is ours."""

    def __init__(self, loaded: Loaded, batch_size: int, max_length: int | None) -> None:
        """Nothing is run yet."""
        self.tokenizer = loaded.tokenizer
        self._loaded, self._batch_size, self._max_length = loaded, batch_size, max_length

    @contextmanager
    def running(self, config: SkipSoftmaxConfig | None) -> Iterator[Running]:
        """The model as a configuration has it; None: dense. Raises as :func:`skimattn.sparse.sparsify`."""
        from lm_eval.models.huggingface import HFLM

        from ...sparse.model import restore, sparsify

        model = self._loaded.model
        if config is not None:
            sparsify(model, config, count=True)
        try:
            lm = HFLM(
                pretrained=model,
                tokenizer=self.tokenizer,
                batch_size=self._batch_size,
                max_length=self._max_length,
                device=str(model.device),
            )
            yield HfRunning(lm, model, config is not None)
        finally:
            restore(model, missing_ok=True)


class VllmRunning:
    """An engine of vLLM."""

    def __init__(self, lm: Any) -> None:
        """It has just started."""
        self.lm = lm
        self._before = self._now()

    def tiles(self) -> Tiles:
        """Of all ranks and layers."""
        time.sleep(_SETTLE)
        now = self._now()
        return {
            phase: (now[phase][0] - self._before[phase][0], now[phase][1] - self._before[phase][1]) for phase in PHASES
        }

    @staticmethod
    def _now() -> dict[Phase, tuple[int, int]]:
        from ...integrations import vllm

        found = vllm.tiles()
        return {phase: tuple(found.get(phase, (0, 0))) for phase in PHASES}  # type: ignore[misc]


class VllmEngine:
    """lm-eval's back end for vLLM, with our attention back end; an engine for each way.

    Args:
        model: a folder or a name of the hub.
        dtype: of weights.
        max_length: tokens of a prompt with what is generated.
        arguments: others of vLLM's ``LLM``.
    """

    def __init__(self, model: str, dtype: str, max_length: int | None, arguments: Mapping[str, Any]) -> None:
        """Nothing is started yet.

        Raises:
            ArgumentError: arguments choose attention, which ways do.
        """
        taken = [name for name in ("attention_config", "additional_config") if name in arguments]
        if taken:
            raise expected("engine", "arguments beside those that choose attention", taken[0])
        from transformers import AutoTokenizer

        from ...integrations import vllm

        vllm.register()  # where the package is not installed, its entry point is not there
        self.tokenizer = AutoTokenizer.from_pretrained(
            model, trust_remote_code=bool(arguments.get("trust_remote_code"))
        )
        self._arguments = {"pretrained": model, "dtype": dtype, "max_model_len": max_length, **arguments}

    @contextmanager
    def running(self, config: SkipSoftmaxConfig | None) -> Iterator[Running]:
        """An engine that ends when this does.

        Raises:
            ArgumentError: it does not start.
        """
        from lm_eval.models.vllm_causallms import VLLM

        own = False if config is None else {OWN: config.model_dump(mode="json", exclude_defaults=True)}
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        try:
            lm = VLLM(
                **self._arguments,
                attention_config={"backend": "CUSTOM"},
                additional_config={"skimattn": {"config": own}},
            )
        except (RuntimeError, ValueError) as error:
            raise expected(
                "engine", "arguments and a model that vLLM starts with", " ".join(str(error).split())
            ) from error
        running = VllmRunning(lm)
        del lm
        try:
            yield running
        finally:
            del running.lm
            gc.collect()
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
