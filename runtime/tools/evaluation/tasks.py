"""The tasks of an evaluation: lm-eval's own by their names, local files through its prompts and metrics, and ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import expected
from ...sparse.calibration.data import retrieval
from . import rows
from .rows import Row, Rows

FIRST, SECOND, GENERATE, NEEDLE = "longbench", "longbench2", "longbench2_generate", "needle"
_HUB = "THUDM/LongBench-v2"
_CHOICES = "longbench2_graph"  # any of lm-eval's tasks of v2: they have one template
_TOKENS = {GENERATE: 128, NEEDLE: 16}  # that are generated
_MARGIN = 16  # tokens that a cut text may gain when it is made tokens of again


@dataclass(frozen=True)
class Asked:
    """Which tasks, on what.

    Attributes:
        names: of tasks: ``longbench``, ``longbench2``, ``longbench2_generate``, ``needle``, or any of lm-eval's.
        data: local files in LongBench's formats; none: what lm-eval downloads.
        lengths: tokens of texts with needles, and of RULER's.
        limit: documents of each task; None: all (20 texts of each length with needles).
        seed: of what is made up.
        max_length: tokens of a prompt with what is generated; local texts are cut in their middle; None: as they are.
        max_new_tokens: in place of what tasks say.
        chat: whether prompts are what a user says to a model that chats.
    """

    names: tuple[str, ...]
    data: tuple[Path, ...] = ()
    lengths: tuple[int, ...] = (4096,)
    limit: int | None = None
    seed: int = 0
    max_length: int | None = None
    max_new_tokens: int | None = None
    chat: bool = False


def load(asked: Asked, tokenizer: Any, named: str) -> dict[str, Any]:
    """lm-eval's task objects by name.

    Args:
        asked: which.
        tokenizer: of the model.
        named: what tasks that make texts find it by, a folder or a name of the hub.

    Raises:
        ArgumentError: there is no such task, or local files have nothing for it.
        ModuleNotFoundError: lm-eval is not installed, or what a task needs.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    local = rows.read(asked.data)
    about = {"max_seq_lengths": list(asked.lengths), "tokenizer": named}
    if _at_hand(asked):  # reading thousands of lm-eval's files takes many seconds
        folder = Path(str(find_spec("lm_eval.tasks").submodule_search_locations[0]))  # type: ignore[union-attr,index]
        manager = TaskManager(
            metadata=about, include_defaults=False, include_path=[folder / "longbench", folder / "longbench2"]
        )
    else:
        manager = TaskManager(metadata=about)
    specs = [spec for name in asked.names for spec in _specs(name, asked, local, tokenizer, manager)]
    found: dict[str, Any] = {}
    for spec in specs:
        found.update(_loaded(manager, spec))
    for task in found.values():
        if asked.max_new_tokens is not None and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value={"max_gen_toks": asked.max_new_tokens}, update=True)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=asked.seed)
    return found


def check() -> None:
    """Raise ``ModuleNotFoundError``, which says what to install, where lm-eval is missing."""
    if find_spec("lm_eval") is None:
        raise ModuleNotFoundError("skimattn eval needs lm-eval: pip install 'skimattn[eval]'")


def _at_hand(asked: Asked) -> bool:
    return all(name in (FIRST, SECOND, GENERATE, NEEDLE) for name in asked.names)


def _loaded(manager: Any, spec: str | Mapping[str, Any]) -> dict[str, Any]:
    try:
        tasks: dict[str, Any] = manager.load([spec])["tasks"]
    except KeyError as error:
        raise expected("tasks", f"{FIRST}, {SECOND}, {GENERATE}, {NEEDLE} or tasks of lm-eval", str(spec)) from error
    except (ConnectionError, FileNotFoundError) as error:  # of datasets, where there is no network
        name = spec if isinstance(spec, str) else spec["task"]
        raise expected("tasks", f"{name}'s data, which lm-eval downloads", str(error).partition("\n")[0]) from error
    return tasks


def _specs(name: str, asked: Asked, local: Rows, tokenizer: Any, manager: Any) -> list[str | dict[str, Any]]:
    """What lm-eval makes the tasks of a name from."""
    if name == NEEDLE:
        return [_needle(length, asked, tokenizer) for length in asked.lengths]
    if name == GENERATE and not asked.data:
        return [_generative(None, asked, tokenizer)]
    if not asked.data or name not in (FIRST, SECOND, GENERATE):
        return [name]
    if not (local.first if name == FIRST else local.second):
        raise expected("data", f"rows of LongBench {'v1' if name == FIRST else 'v2'} for {name}", "none")
    if name == FIRST:
        return [_first(of, docs, asked, tokenizer, manager) for of, docs in local.first.items()]
    docs = [rows.as_second(row) for row in local.second]
    return [_choices(docs, asked, tokenizer, manager) if name == SECOND else _generative(docs, asked, tokenizer)]


def _documents(docs: Sequence[Row]) -> Any:
    """What lm-eval calls for documents."""

    def made(**_: Any) -> Mapping[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(list(docs))}

    return made


def _cut(docs: Sequence[Row], rest: int, asked: Asked, tokenizer: Any) -> list[Row]:
    """Documents whose contexts leave room for ``rest`` tokens of other text."""
    if asked.max_length is None:
        return list(docs)
    room = asked.max_length - rest - _MARGIN
    if room < 1:
        raise expected("max_length", f"more than {rest + _MARGIN} tokens for a task", asked.max_length)
    made = []
    for doc in docs:
        others = [str(value) for key, value in doc.items() if key in ("question", "choices")]
        left = max(1, room - len(_encode(tokenizer, " ".join(others))))
        context = rows.fitted(
            doc["context"], left, lambda text: _encode(tokenizer, text), lambda ids: str(tokenizer.decode(ids))
        )
        made.append({**doc, "context": context})
    return made


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(one) for one in tokenizer(text, add_special_tokens=False).input_ids]


def _first(of: str, docs: Sequence[Row], asked: Asked, tokenizer: Any, manager: Any) -> dict[str, Any]:
    """lm-eval's task of a part of v1: its prompt and its metric, on local rows."""
    name = f"{FIRST}_{of}"
    if name not in manager.task_index:
        raise expected("data", "datasets of LongBench v1, such as qasper", of)
    known = _template(manager, name)
    new = asked.max_new_tokens or known["generation_kwargs"]["max_gen_toks"]
    rest = len(_encode(tokenizer, known["doc_to_text"])) + new
    return {**known, "task": name, **_here(_cut([rows.as_first(row) for row in docs], rest, asked, tokenizer))}


def _choices(docs: Sequence[Row], asked: Asked, tokenizer: Any, manager: Any) -> dict[str, Any]:
    """Which of four letters is likeliest, by lm-eval's prompt of v2."""
    known = _template(manager, _CHOICES)
    rest = len(_encode(tokenizer, known["doc_to_text"]))
    return {**known, "task": SECOND, **_here(_cut(docs, rest, asked, tokenizer))}


def _template(manager: Any, name: str) -> dict[str, Any]:
    """What lm-eval's file of a task says."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = load_yaml(manager.task_index[name].yaml_path)
    return {key: value for key, value in found.items() if key not in ("tag", "group", "dataset_kwargs")}


def _here(docs: Sequence[Row]) -> dict[str, Any]:
    """Settings of a task that has its documents at hand."""
    return {"custom_dataset": _documents(docs), "dataset_path": "", "dataset_name": None, "test_split": "test"}


def _generative(docs: Sequence[Row] | None, asked: Asked, tokenizer: Any) -> dict[str, Any]:
    """v2 by what the model writes: our prompt, and the letter that its text comes to."""
    if docs is None:
        docs = _downloaded()
    new = asked.max_new_tokens or _TOKENS[GENERATE]
    rest = len(_encode(tokenizer, rows.PROMPT)) + new
    return _ours(GENERATE, _cut(docs, rest, asked, tokenizer), rows.asked, _right_letter)


def _downloaded() -> list[Row]:
    from datasets import load_dataset

    try:
        found = load_dataset(_HUB, split="train")
    except (ConnectionError, FileNotFoundError) as error:
        said = str(error).partition("\n")[0]
        raise expected("tasks", f"{GENERATE}'s data, {_HUB} of the hub, or --data", said) from error
    return [rows.as_second(row) for row in found]


def _ours(name: str, docs: Sequence[Row], text: Any, score: Any) -> dict[str, Any]:
    """A task of our own that generates."""
    return {
        "task": name,
        **_here(docs),
        "output_type": "generate_until",
        "doc_to_text": text,
        "doc_to_target": "{{answer}}",
        "process_results": score,
        "generation_kwargs": {"until": [], "max_gen_toks": _TOKENS[name.partition(":")[0]], "do_sample": False},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _right_letter(doc: Row, results: Sequence[str]) -> dict[str, float]:
    return {"acc": float(rows.letter_of(results[0]) == rows.LETTERS[doc["answer"]])}


def _needle(length: int, asked: Asked, tokenizer: Any) -> dict[str, Any]:
    """Made-up texts of a length with numbers in them, one of which is asked for at the end."""
    docs = []
    for index in range(asked.limit or 20):
        tokens = retrieval(lambda text: _encode(tokenizer, text), length, seed=asked.seed * 1_000_003 + index)
        text, _, answer = str(tokenizer.decode(tokens)).rpartition(" is ")
        docs.append({"text": f"{text} is", "answer": answer.strip(" .")})
    return _ours(f"{NEEDLE}:{length}", docs, _text, _found)


def _text(doc: Row) -> str:
    return str(doc["text"])


def _found(doc: Row, results: Sequence[str]) -> dict[str, float]:
    return {"acc": float(doc["answer"] in results[0])}
