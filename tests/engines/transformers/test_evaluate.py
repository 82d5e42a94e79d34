"""``skimattn eval`` through lm-eval on a tiny model and rows of LongBench's two formats, without a network."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from skimattn.integrations.transformers import load
from skimattn.sparse import sparsify, summary
from skimattn.tools.cli import main
from skimattn.tools.evaluation import tasks

from .folders import save_tiny

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="NO LM-EVAL: it is installed with transformers 5.24 only"
)

CONTEXT = "The mill lies at the end of a narrow road, and it was painted again after the long winter. " * 8
FIT = {"prefill": {"a": 10.0, "b": 6.0}, "decode": {"a": 2.0, "b": 6.0}}
CONFIG = {"fit": FIT, "target_sparsity": {"prefill": 0.3, "decode": 0.3}}
ALL = "longbench,longbench2,longbench2_generate,needle"
SMALL = ("--lengths", "500", "--limit", "3", "--max-new-tokens", "3")
TASKS = ["longbench_qasper", "longbench_trec", "longbench2", "longbench2_generate", "needle:500"]


def first(of: str, text: str, answers: list[str], classes: list[str] | None = None) -> dict[str, Any]:
    row = {"input": text, "context": CONTEXT, "answers": answers, "length": 99, "dataset": of, "language": "en"}
    return {**row, "all_classes": classes, "_id": text}


def second(question: str, answer: str) -> dict[str, Any]:
    choices = {f"choice_{letter}": f"thing {letter}" for letter in "ABCD"}
    about = {"_id": question, "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short"}
    return {**about, "question": question, **choices, "answer": answer, "context": CONTEXT}


ROWS = [
    first("qasper", "Where is it?", ["end of a narrow road", "far away"]),
    first("qasper", "When was it painted?", ["after winter"]),
    first("trec", "Question: Who?\nType:", ["person"], ["person", "city"]),
    second("First?", "B"),
    second("Second?", "D"),
    second("Third?", "B"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    save_tiny(folder / "model", begins=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["eval", "model", "--config", "config.json", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def found(*arguments: str) -> dict[str, Any]:
    result = invoke("--data", "rows.jsonl", *SMALL, *arguments, "--json")
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def by_way(values: dict[str, Any], task: str) -> dict[str, Any]:
    return {row["way"]: row for row in values["results"] if row["task"] == task}


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    """All tasks, dense and at two targets; everything is written that can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        asked = ("--targets", "0.2,0.6", "--state", "state.jsonl", "--dump", "ids.jsonl", "--plot", "scores.png")
        return found("--tasks", ALL, *asked)


def test_every_task_runs_in_every_way(place: Path, whole: dict[str, Any]) -> None:
    assert [(row["way"], row["task"]) for row in whole["results"]] == [
        (way, task) for way in ("dense", "0.2", "0.6") for task in TASKS
    ]
    for task in TASKS:
        ways = by_way(whole, task)
        assert ways["dense"]["tiles"] == {} and ways["dense"]["sparsity"] == {"prefill": None, "decode": None}
        shares = [ways[way]["sparsity"] for way in ("0.2", "0.6")]
        assert 0 <= shares[0]["prefill"] <= shares[1]["prefill"] and shares[1]["prefill"] > 0.05, task
        decoded = task != "longbench2"
        assert all((share["decode"] is not None) == decoded for share in shares), "letters are weighed in prefill"
    assert (place / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert [ways["documents"] for ways in by_way(whole, "longbench_qasper").values()] == [2, 2, 2]


def test_tiles_are_those_of_the_same_prompts(place: Path, whole: dict[str, Any]) -> None:
    """The dumped ids, run once more by transformers, with the threshold that the fit asks for."""
    lines = [json.loads(line) for line in (place / "ids.jsonl").read_text().splitlines()]
    assert [(line["task"], line["document"]) for line in lines] == [
        (task, index) for task, count in zip(TASKS, (2, 1, 3, 3, 3), strict=True) for index in range(count)
    ]
    assert {line["output_tokens"] for line in lines if line["task"] == "longbench2"} == {1}
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
    needles = [line for line in lines if line["task"] == "needle:500"]
    for line in needles:
        assert line["prompt"][0] == 1 and line["output_tokens"] == 3
        assert tokenizer.decode(line["prompt"]).endswith(" is") and 485 < len(line["prompt"]) < 501
    config = {"fit": FIT, "target_sparsity": {"prefill": 0.6, "decode": 0.6}}
    loaded = load("model")
    sparsify(loaded.model, config, count=True)
    for line in needles:
        loaded.model.generate(torch.tensor([line["prompt"]]), max_new_tokens=3, do_sample=False)
    tiles = by_way(whole, "needle:500")["0.6"]["tiles"]
    for phase in ("prefill", "decode"):
        rows = [row for row in summary(loaded.model).rows if row.phase == phase]
        wanted = {"visited": sum(row.visited or 0 for row in rows), "skipped": sum(row.skipped or 0 for row in rows)}
        assert tiles[phase] == wanted


def answering(texts: Callable[[str], str]) -> Any:
    def generate(self: Any, requests: Any, *_: Any, **__: Any) -> list[str]:
        return [texts(request.args[0]) for request in requests]

    return generate


def test_answers_get_the_scores_that_they_deserve(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    said = {
        "Where is it?": " The end of a road.",  # 3 of its 3 words but articles, of 4: f1 6/7
        "When was it painted?": "in spring",
        "Question: Who?": "a person",
        "First?": "The correct answer is (B)",
        "Second?": "The correct answer is (A)",
        "Third?": "B.",
    }
    monkeypatch.setattr(
        HFLM, "generate_until", answering(lambda prompt: next((said[key] for key in said if key in prompt), "1"))
    )
    letters = {"First?": "B", "Second?": "B", "Third?": "B"}

    def weigh(self: Any, requests: Any, *_: Any, **__: Any) -> list[tuple[float, bool]]:
        likely = [letters[next(key for key in letters if key in request.args[0])] for request in requests]
        pairs = zip(requests, likely, strict=True)
        return [(-1.0 if request.args[1].strip() == letter else -5.0, False) for request, letter in pairs]

    monkeypatch.setattr(HFLM, "loglikelihood", weigh)
    values = found("--tasks", ALL)
    scores = {task: next(iter(by_way(values, task)["dense"]["scores"].values()))["score"] for task in TASKS}
    assert scores["longbench_qasper"] == pytest.approx(6 / 7 / 2)
    assert scores["longbench_trec"] == 1.0
    assert scores["longbench2"] == pytest.approx(2 / 3), "B is right in two of three"
    assert scores["longbench2_generate"] == pytest.approx(2 / 3)
    assert scores["needle:500"] == 0.0
    numbers = answering(lambda prompt: " " + number_of(prompt) + ".")
    monkeypatch.setattr(HFLM, "generate_until", numbers)
    found_again = by_way(found("--tasks", "needle"), "needle:500")
    assert [row["scores"]["acc"]["score"] for row in found_again.values()] == [1.0, 1.0]


def number_of(prompt: str) -> str:
    """The number behind the name that a prompt with needles ends with."""
    asked = prompt.rpartition("The number of the ")[2].removesuffix(" is")
    return prompt.partition(f"the number of the {asked} is ")[2].partition(".")[0]


def test_a_run_goes_on_where_it_was_stopped(
    place: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.evaluator

    ran, evaluate = [], lm_eval.evaluator.evaluate

    def counted(lm: Any, task_dict: Any, **options: Any) -> Any:
        ran.extend(task_dict["tasks"])
        return evaluate(lm, task_dict, **options)

    monkeypatch.setattr(lm_eval.evaluator, "evaluate", counted)
    asked = ("--tasks", ALL, "--targets", "0.2,0.6", "--state")
    assert found(*asked, "state.jsonl")["results"] == whole["results"] and ran == []
    lines = (place / "state.jsonl").read_text().splitlines(keepends=True)
    (place / "cut.jsonl").write_text("".join(lines[:-2]) + lines[-2][:40])
    again = found(*asked, "cut.jsonl")
    assert ran == TASKS[-2:]
    same = [{key: row[key] for key in ("way", "task", "scores", "tiles")} for row in again["results"]]
    assert same == [{key: row[key] for key in ("way", "task", "scores", "tiles")} for row in whole["results"]]
    more = found("--tasks", "longbench2", "--targets", "0.4,0.6", "--state", "state.jsonl")
    assert ran == [*TASKS[-2:], "longbench2"] and [row["way"] for row in more["results"]] == ["dense", "0.4", "0.6"]


def test_a_state_of_other_settings_is_refused(place: Path, whole: dict[str, Any]) -> None:
    asked = ("--data", "rows.jsonl", "--tasks", "needle", "--state", "state.jsonl", "--max-new-tokens", "3")
    said = invoke(*asked, "--lengths", "500", "--limit", "2").output
    assert "--state: expected the file of this evaluation" in said and "that of other limit)" in said
    (place / "no-state.jsonl").write_text("a line\n")
    said = invoke(*asked[:4], "--state", "no-state.jsonl", "--lengths", "500").output
    assert "--state: expected a file that an evaluation left, in no-state.jsonl" in said
    (place / "other.jsonl").write_text(json.dumps(ROWS[0]))
    asked = ("--data", "other.jsonl", "--tasks", "needle", "--state", "state.jsonl", "--max-new-tokens", "3")
    assert "that of other data)" in invoke(*asked, "--lengths", "500", "--limit", "3").output


def test_long_contexts_lose_their_middle(place: Path) -> None:
    asked = ("--tasks", "longbench2_generate", "--max-length", "700", "--dump", "cut-ids.jsonl")
    found(*asked)
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
    for line in (place / "cut-ids.jsonl").read_text().splitlines():
        prompt = json.loads(line)["prompt"]
        text = tokenizer.decode(prompt)
        assert 640 < len(prompt) <= 697 and "Here is a text" in text and text.endswith("its letter.\n")
        assert "(D) thing D" in text and CONTEXT[:60] in text and CONTEXT.strip()[-60:] in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tasks", "longbench3"), "--tasks: expected longbench, longbench2, longbench2_generate, needle or tasks of"),
        (("--tasks", "longbench2", "--data", "first.jsonl"), "--data: expected rows of LongBench v2 for longbench2"),
        (("--tasks", "longbench", "--data", "odd.jsonl"), "--data: expected datasets of LongBench v1, such as qasper"),
        (("--tasks", "needle", "--targets", "1.5"), "--targets: expected numbers with commas between them"),
        (("--tasks", "longbench2", "--data", "rows.jsonl", "--max-length", "64"), "--max-length: expected more than"),
        (("--tasks", "needle", "--backend", "vllm", "--engine", "["), "--engine: expected keys and values as JSON"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    (place / "first.jsonl").write_text(json.dumps(ROWS[0]))
    (place / "odd.jsonl").write_text(json.dumps({**ROWS[0], "dataset": "odd"}))
    monkeypatch.setattr(tasks, "_at_hand", lambda asked: True)  # reading all of lm-eval's files takes 15 seconds
    result = invoke(*arguments)
    assert result.exit_code == 1 and said in result.output


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'skimattn[eval]'" in invoke("--tasks", "needle").output
