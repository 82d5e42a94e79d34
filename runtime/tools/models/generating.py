"""Text that a model makes, streamed and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ...errors import expected
from .options import Sampling

if TYPE_CHECKING:
    from ...integrations.transformers import Loaded


class _Streamer(transformers.TextStreamer):  # type: ignore[misc]
    """Hands text to a function as soon as it is sure."""

    def __init__(self, tokenizer: Any, tell: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._tell = tell

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        del stream_end
        self._tell(text)


def prompt_of(loaded: Loaded, text: str, chat: bool = False) -> torch.Tensor:
    """Token ids ``[1, S]`` of a prompt.

    Args:
        loaded: the model.
        text: the prompt.
        chat: as what a user says, in the form that the model was trained with.

    Raises:
        ArgumentError: it is empty, or the tokenizer has no such form.
    """
    if chat:
        if not getattr(loaded.tokenizer, "chat_template", None):
            raise expected("--chat", "a tokenizer with a chat template", "none")
        said = [{"role": "user", "content": text}]
        text = loaded.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    tokens = loaded.encode(text) if chat else [*loaded.beginning, *loaded.encode(text)]
    if not tokens:
        raise expected("--prompt", "a text", "an empty one")
    return torch.tensor([tokens], device=loaded.model.device)


def stream(
    loaded: Loaded,
    prompt: torch.Tensor,
    new_tokens: int,
    sampling: Sampling,
    seed: int | None,
    tell: Callable[[str], None],
) -> int:
    """Generate, and hand the text on as it comes; returns how many tokens it were."""
    transformers.set_seed(0 if seed is None else seed)
    made = loaded.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        streamer=_Streamer(loaded.tokenizer, tell),
        pad_token_id=_padding(loaded),
        **sampling.arguments(),
    )
    return int(made.shape[1] - prompt.shape[1])


def _padding(loaded: Loaded) -> int | None:
    """Something, since there is nothing to pad: transformers says a word if it is left to guess."""
    config = loaded.model.generation_config
    found = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
    first: int | None = found[0] if isinstance(found, list) else found
    return first


def continued(loaded: Loaded, text: str, new_tokens: int, sampling: Sampling, seed: int | None) -> str:
    """How a prompt goes on."""
    parts: list[str] = []
    stream(loaded, prompt_of(loaded, text), new_tokens, sampling, seed, parts.append)
    return "".join(parts)


@contextmanager
def logged(loaded: Loaded, file: Path | None, prompt_tokens: int) -> Iterator[None]:
    """Write statistics of each forward of a generation into a file; nothing where that is None.

    Raises:
        ArgumentError: no layer skips.
        OSError: the file cannot be written.
    """
    if file is None:
        yield
        return
    from ...sparse.statlog.log import StatLog

    seen = 0

    def step(module: object, arguments: tuple[Any, ...], named: dict[str, Any], output: object) -> None:
        nonlocal seen
        tokens = int(named.get("input_ids", arguments[0] if arguments else None).shape[1])  # type: ignore[union-attr]
        phase = "prefill" if seen < prompt_tokens else "decode"
        seen += tokens
        log.step(requests={phase: 1}, tokens={phase: tokens})  # type: ignore[dict-item]

    with StatLog(file, loaded.model) as log:
        hook = loaded.model.register_forward_hook(step, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
