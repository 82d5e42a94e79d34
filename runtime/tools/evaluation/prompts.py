"""Token ids of prompts, in a file that a throughput benchmark replays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .tasks import Asked


def dump(file: Path, tasks: Mapping[str, Any], tokenizer: Any, asked: Asked) -> int:
    """Write the prompts of all tasks as models are given them.

    A line of JSON each: ``prompt`` (token ids), ``output_tokens``, ``task`` and ``document``, which ``python -m bench
    serve`` takes as ``--replay``. Where answers are only weighed, the document's prompt stands once, with one token.

    Returns:
        How many there are.

    Raises:
        OSError: the file cannot be written.
    """
    lines = [line for name, task in tasks.items() for line in _of_task(name, task, tokenizer, asked)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _of_task(name: str, task: Any, tokenizer: Any, asked: Asked) -> Iterator[dict[str, Any]]:
    from lm_eval.evaluator_utils import get_sample_size

    def chat(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    task.build_all_requests(
        limit=get_sample_size(task, asked.limit),
        rank=0,
        world_size=1,
        apply_chat_template=asked.chat,
        chat_template=chat if asked.chat else None,
    )
    seen: set[int] = set()
    for request in task.instances:
        if request.doc_id in seen:
            continue
        seen.add(request.doc_id)
        text, how = request.args
        new = int(how["max_gen_toks"]) if isinstance(how, dict) else 1
        begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        tokens = [int(one) for one in tokenizer(text, add_special_tokens=not begun).input_ids]
        if asked.max_length is not None:
            tokens = tokens[-(asked.max_length - new) :]  # as lm-eval cuts what is too long
        yield {"prompt": tokens, "output_tokens": new, "task": name, "document": request.doc_id}
