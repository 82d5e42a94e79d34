"""The commands that run a model, on a tiny one in a folder: what they find, write, print and refuse."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from skimattn import sparse
from skimattn.integrations import transformers as transformers_side
from skimattn.integrations.transformers import Comparison, TextForward, load
from skimattn.integrations.transformers.comparison import Pair, Side
from skimattn.sparse import SkipSoftmaxConfig, attention_modules, policy_of, read_statistics
from skimattn.sparse.calibration.profile import Cost
from skimattn.sparse.policy import Phase
from skimattn.tools.cli import main
from skimattn.tools.models.calibrate import calibrate
from skimattn.tools.models.calibrating import Asked, mean_and_error
from skimattn.tools.models.texts import samples_of

from .folders import save_text, save_tiny

TRIALS = ("--thresholds", "0.003,0.05,0.5", "--lengths", "512,768", "--new-tokens", "4")
LAYERS = ["model.layers.0.self_attn", "model.layers.1.self_attn"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text, and a configuration that was calibrated."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    save_text(folder / "text.txt")
    rule = {"scale_factor": {"prefill": 200, "decode": 60}}
    (folder / "config.json").write_text(json.dumps(rule))
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def done(*arguments: str | Path) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_calibration_holds_on_other_texts(place: Path) -> None:
    job = ("calibrate", "model", "--target-prefill", "0.2", "--target-decode", "0.5", "--data", "text.txt", *TRIALS)
    made = done(
        *job, "--samples", "2", "--held-out", "0.5", "--out", "found.yaml", "--plot", "fit.png", "--state", "s.jsonl"
    )
    text = made.stdout
    assert "prefill  own " in text and "decode   public" in text and "is a threshold of" in text
    assert "held out  tokens  texts  target" in text and "written: found.yaml, fit.png" in text
    assert (place / "fit.png").read_bytes().startswith(b"\x89PNG")
    config = SkipSoftmaxConfig.read(place / "found.yaml")
    assert config.target_sparsity == {"prefill": 0.2, "decode": 0.5} and config.kernels["decode"].tile[1] == 128
    group = yaml.safe_load((place / "found.yaml").read_text())["sparse_attention_config"]["config_groups"]["group_0"]
    assert group["algorithm"] == "skip_softmax" and group["targets"] == ["LlamaAttention"]

    loaded = load("model")
    others = samples_of(loaded, [place / "text.txt"], (512, 768), 2, start=9000)
    sparse.sparsify(loaded.model, config, count=True)
    for sample in others:
        TextForward(loaded.model, new_tokens=4)(sample, "decode")
    counted = sparse.summary(loaded.model)
    assert counted.sparsity("prefill") == pytest.approx(0.2, abs=0.05)
    assert counted.sparsity("decode") == pytest.approx(0.5, abs=0.12), "few tiles"


def test_it_goes_on_from_its_state(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ("calibrate", "model", "--target-decode", "0.5", "--data", "text.txt", *TRIALS)
    job = (*job, "--samples", "1", "--state", "t.jsonl", "--json")
    first = json.loads(done(*job).stdout)
    phases = list(first["phases"])
    assert phases == ["decode"] and set(first["phases"]["decode"]["fit"]["lengths"]) == {509, 765}
    assert first["phases"]["decode"]["points"] == 6 and first["phases"]["decode"]["held_out"] == []

    def runs(*_: Any) -> Any:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(TextForward, "__call__", runs)
    again = json.loads(done(*job).stdout)
    assert again["phases"] == first["phases"] and again["sparse_attention_config"] == first["sparse_attention_config"]
    for changed in (("--chunk", "256"), ("--new-tokens", "5")):
        refused = invoke(*job, *changed)
        assert refused.exit_code == 1 and refused.stderr.startswith("Error: --state: expected the file of this cal")


@pytest.mark.parametrize(
    "options",
    [
        "--per layer --target-prefill 0.22",
        "--per layer --cost divergence --target-prefill 0.22",
        "--per head --cost dropped --budget 0.02",
    ],
)
def test_thresholds_of_layers_and_heads(place: Path, options: str) -> None:
    job = ("calibrate", "model", "--data", "text.txt", "--lengths", "640", "--samples", "1", "--new-tokens", "0")
    made = json.loads(done(*job, "--thresholds", "0.01,0.1,0.5", *options.split(), "--out", "q.json", "--json").stdout)
    assert list(made["phases"]) == ["prefill"], "no tokens, no decode"
    chosen, config = made["phases"]["prefill"]["chosen"], SkipSoftmaxConfig.read(place / "q.json")
    assert list(config.patterns) == LAYERS
    factors = [setting.scale_factor["prefill"] for setting in config.patterns.values()]
    if "layer" in options:
        assert chosen["units"] == 2 and chosen["skipped"] == pytest.approx(0.22, abs=0.04)
        assert all(isinstance(factor, float) for factor in factors)
    else:
        assert chosen["units"] == 8 and 0 < chosen["cost"] <= 0.02
        assert all(isinstance(factor, tuple) and len(factor) == 4 for factor in factors)


def test_every_cost_can_be_asked_for() -> None:
    (option,) = [one for one in calibrate.params if one.name == "cost"]
    assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == get_args(Cost)


def test_verify_shows_what_it_costs_and_fails_where_that_is_too_much() -> None:
    job = ("verify", "model", "--config", "config.json", "--data", "text.txt", "--lengths", "384,640", "--samples", "1")
    job = (*job, "--new-tokens", "4", "--start", "5000")
    found = json.loads(done(*job, "--json").stdout)
    summary = {(one["phase"], one["length"]): one for one in found["summary"]}
    assert list(summary) == [(phase, length) for phase in ("prefill", "decode") for length in (None, 384, 640)]
    assert list(found["layers"]["prefill"]) == LAYERS and 0.05 < found["sparsity"]["prefill"] < 0.5
    assert found["layers"]["decode"][LAYERS[0]]["threshold"] == "60 / len_k" and len(found["texts"]) == 2
    losses = [text["loss"] for text in found["texts"]]
    change = sum(one["sparse"]["decode"] - one["dense"]["decode"] for one in losses) / 2
    assert summary["decode", None]["change"] == pytest.approx(math.expm1(change)) and change

    table = done(*job)
    assert (
        table.stderr == ""
        and "perplexity, and the largest difference of logits" in table.stdout
        and "greedy tokens" in table.stdout
    )
    assert f"{LAYERS[1]}  200 / len_k" in table.stdout


@pytest.mark.parametrize(("most", "status"), [("30.4", 1), ("30.6", 0)])
def test_a_perplexity_that_rises_too_much_is_a_failure(most: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all texts of a phase together: one length alone rises by more, and decode falls."""

    def side(prefill: float, decode: float) -> Side:
        return Side({"prefill": prefill, "decode": decode}, {"prefill": 1.0, "decode": 1.0}, ())

    def rises(*_: Any, **__: Any) -> Comparison:
        largest: dict[Phase, float] = {"prefill": 1.0, "decode": 1.0}
        added = {8: 0.6, 9: 2 * 0.2662 - 0.6}
        pairs = (Pair(length, side(3.0, 2.0), side(3.0 + more, 1.0), largest) for length, more in added.items())
        return Comparison(tuple(pairs), {"prefill": {}, "decode": {}})

    monkeypatch.setattr(transformers_side, "compare", rises)
    job = ("verify", "model", "--config", "config.json", "--data", "text.txt", "--lengths", "200", "--samples", 1)
    found = invoke(*job, "--max-perplexity-change", most)
    assert found.exit_code == status and "+30.500 %" in found.stdout
    said = "Error: --max-perplexity-change: expected at most 30.4 % (got 30.5 %)\n"
    assert found.stderr == (said if status else "")


def test_a_folder_that_was_exported_is_the_same_everywhere(place: Path) -> None:
    made = done("sparsify", "model", "--config", "config.json", "--export", "out", "--prompt", "Abc", "--new-tokens", 3)
    assert "dense: " in made.stdout and "sparse: " in made.stdout and "out: config.json" in made.stdout
    document = json.loads((place / "out" / "config.json").read_text())
    assert document["model_type"] == "llama"
    assert document["sparse_attention_config"]["config_groups"]["group_0"]["threshold_scale_factor"] == {
        "prefill": 200.0,
        "decode": 60.0,
    }
    model = transformers.AutoModelForCausalLM.from_pretrained("out", dtype="bfloat16", attn_implementation="skimattn")
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    assert tokenizer("Abc").input_ids == load("model").encode("Abc")
    sparse.from_pretrained(model, "out")
    wanted = sparse.sparsify(load("model").model, "config.json")
    for left, right in zip(attention_modules(model).values(), attention_modules(wanted).values(), strict=True):
        assert policy_of(left) == policy_of(right) and policy_of(left) is not None
    for name, weight in load("model").model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    assert (
        done("verify", "out", "--data", "text.txt", "--lengths", "300", "--samples", 1, "--new-tokens", 0).exit_code
        == 0
    )


def test_sparsify_calibrates_by_itself(place: Path) -> None:
    job = ("sparsify", "model", "--export", "own", "--target-prefill", "0.2", *TRIALS, "--samples", "2", "--json")
    made = json.loads(done(*job).stdout)
    config = SkipSoftmaxConfig.read(place / "own")
    assert config.target_sparsity == {"prefill": 0.2} and made["folder"] == "own"
    assert made["sparse_attention_config"]["skimattn"]["fit"]["prefill"]["b"] == config.fit["prefill"].b


def test_generate_streams_and_counts(place: Path) -> None:
    (place / "prompt.txt").write_text((place / "text.txt").read_text()[:600])
    job = ("generate", "model", "--prompt-file", "prompt.txt", "--max-new-tokens", "5")
    dense = done(*job)
    assert "600 tokens, then 5 in" in dense.stderr and dense.stderr.strip().endswith("dense")
    model, tokens = load("model").model, load("model").encode((place / "prompt.txt").read_text())
    wanted = tokens[:]
    for _ in range(5):
        wanted.append(int(model(torch.tensor([wanted])).logits[0, -1].argmax()))
    assert dense.stdout == load("model").tokenizer.decode(wanted[600:], skip_special_tokens=True) + "\n"
    sparse_run = done(*job, "--config", "config.json", "--stats", "steps.jsonl")
    assert "skimattn stats steps.jsonl" in sparse_run.stderr
    found = read_statistics("steps.jsonl")
    assert list(found.tokens["prefill"]) == [600, 0, 0, 0, 0] and list(found.tokens["decode"]) == [0, 1, 1, 1, 1]
    assert found.tiles["prefill"][0].sum() > 0 and (found.tiles["decode"][1:, :, 0] > 0).all()
    named = json.loads((place / "config.json").read_text())
    (place / "named.json").write_text(json.dumps({**named, "stat_log_path": "named.jsonl"}))
    done(*job, "--config", "named.json")
    assert (read_statistics("named.jsonl").tiles["prefill"] == found.tiles["prefill"]).all()
    drawn = [done(*job, "--do-sample", "--temperature", "2", "--top-p", "0.9", "--seed", seed).stdout for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("calibrate model", "--target: expected a share to skip"),
        ("calibrate model --target 1.5", "--target: expected above 0 and below 1 (got 1.5)"),
        ("calibrate model --target-decode 0", "--target-decode: expected above 0 and below 1"),
        ("calibrate model --target-decode 0.5 --new-tokens 0", "--target-decode: expected --new-tokens above 0"),
        ("calibrate model --budget 0.1", "--budget: expected --per layer or --per head"),
        ("calibrate model --budget 0.1 --per head --target 0.5", "--budget: expected a phase that has no target"),
        ("calibrate model --target 0.5 --held-out 1024 --lengths 1024", "--held-out: expected a share below 1, or one"),
        ("calibrate model --target 0.5 --held-out 0.5 --samples 1", "--held-out: expected --samples of at least 2"),
        ("calibrate model --target 0.5 --out c.txt", "--out: expected a name that ends in .json, .yaml, .yml"),
        ("calibrate model --target 0.5 --out no/c.json", "--out: expected a folder that is there (got no)"),
        ("calibrate model --target 0.5 --lengths 1,a", "--lengths: expected numbers with commas between them"),
        ("calibrate model --target 0.5 --thresholds 0.1,2", "--thresholds: expected numbers with commas"),
        ("calibrate model --target 0.5 --thresholds 0.2,0.1", "--thresholds: expected at least two, rising"),
        ("calibrate model --target 0.5 --lengths 9", "--lengths: expected at least"),
        ("calibrate model --target 0.5 --data text.txt --lengths 20000 --samples 1", "--data: expected at least 20000"),
        ("calibrate model --target 0.5 --data bad.jsonl", "bad.jsonl:2: expected a line of JSON"),
        ("calibrate model --target 0.5 --data key.jsonl", 'key.jsonl:1: expected a text under "text" or token ids'),
        ("calibrate model --target 0.5 --data large.jsonl", "large.jsonl:1: expected tokens from 0 to 258 (got 259)"),
        ("calibrate empty --target 0.5", "MODEL: expected a folder with a config.json or one .gguf file"),
        ("calibrate no/such-model --target 0.5", "MODEL: expected a folder with a model, or a name that the hub or"),
        (
            "calibrate model --target-prefill 0.85 --data text.txt --lengths 512,768 --samples 1 --thresholds 0.01,0.5",
            "--target-prefill: expected between",
        ),
        (
            "generate bare --prompt a",
            "MODEL: expected a folder with a model, or a name that the hub or its cache has (got bare",
        ),
        ("verify model", "--config: expected a configuration, since model.config has no sparse_attention_config"),
        ("verify model --config config.json --lengths 20", "--lengths: expected"),
        ("sparsify model --export out2", "--target: expected a share to skip"),
        ("sparsify model --export out2 --config config.json --target 0.5", "--config: expected no target"),
        ("sparsify model --export model --config config.json", "--export: expected another folder than MODEL's"),
        ("generate model", "--prompt: expected either it or --prompt-file"),
        ("generate model --prompt=", "--prompt: expected a text"),
        ("generate model --prompt a --chat", "--chat: expected a tokenizer with a chat template"),
        ("generate model --prompt a --top-p 0.5", "--top-p: expected --do-sample beside it"),
        ("generate model --prompt a --stats s", "--stats: expected --config"),
        ("generate model --prompt a --config text.txt", "text.txt: expected JSON"),
    ],
)
def test_refusals_are_one_line_that_names_the_option(place: Path, arguments: str, words: str) -> None:
    (place / "empty").mkdir(exist_ok=True)
    (place / "bare").mkdir(exist_ok=True)
    (place / "bare" / "config.json").write_text("{}")
    (place / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (place / "key.jsonl").write_text('{"txt": "a"}\n')
    (place / "large.jsonl").write_text('{"tokens": [0, 259]}\n')
    found = invoke(*arguments.split())
    assert found.exit_code == 1 and len(found.stderr.strip().splitlines()) == 1, found.output
    assert words in found.stderr and found.stdout == ""


def test_what_is_missing_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "any.yaml").touch()
    monkeypatch.setitem(sys.modules, "yaml", None)
    found = invoke("verify", "model", "--config", "any.yaml", "--data", "text.txt", "--lengths", "300", "--samples", 1)
    assert found.exit_code == 1 and found.stderr.endswith("pip install 'skimattn[calibrate]'\n")


def test_texts_of_files(place: Path) -> None:
    loaded = load("model")
    rows = ['{"text": "abc"}', "", '{"tokens": [7, 8], "other": 1}', '{"text": "de"}']
    (place / "rows.jsonl").write_text("\n".join(rows))
    (place / "more.txt").write_text("fghij" * 30000)
    files = [place / "rows.jsonl", place / "more.txt"]
    stream = [*loaded.encode("abc"), 7, 8, *loaded.encode("de" + "fghij" * 30000)]
    assert samples_of(loaded, files, (3, 5), 2, start=1) == [stream[1:4], stream[4:9], stream[9:12], stream[12:17]]
    (long,) = samples_of(loaded, files, (150000,), 1)
    assert long == stream[:150000], "pieces of a long file follow each other"
    save_tiny(place / "begins", begins=True)
    begun = load("begins")
    assert samples_of(begun, files, (3, 5), 1) == [[1, *stream[:2]], [1, *stream[2:6]]]
    made = samples_of(loaded, [], (300, 400), 2, seed=5)
    assert [len(one) for one in made] == [300, 400] * 2 and made != samples_of(loaded, [], (300, 400), 2, seed=6)
    assert "Remember that the number of the" in loaded.tokenizer.decode(made[0])


@pytest.mark.parametrize(
    ("held_out", "used", "held"),
    [
        (None, [(5, 0), (9, 1), (5, 2), (9, 3), (5, 4), (9, 5), (5, 6), (9, 7)], []),
        (0.3, [(5, 0), (5, 2), (5, 4), (9, 1), (9, 3), (9, 5)], [(5, 6), (9, 7)]),
        (0.99, [(5, 0), (9, 1)], [(5, 2), (5, 4), (5, 6), (9, 3), (9, 5), (9, 7)]),
        (9, [(5, 0), (5, 2), (5, 4), (5, 6)], [(9, 1), (9, 3), (9, 5), (9, 7)]),
    ],
)
def test_what_is_held_out_is_not_calibrated_with(held_out: float | None, used: Any, held: Any) -> None:
    texts = [[number] * (9 if number % 2 else 5) for number in range(8)]
    asked = Asked(0.5, None, None, "none", "loss", None, held_out, None, False, None)
    assert [[(len(one), one[0]) for one in part] for part in asked.split(texts)] == [used, held]


def test_means_and_errors() -> None:
    assert mean_and_error([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7 / 3)))
    assert mean_and_error([2.0]) == (2.0, None)
