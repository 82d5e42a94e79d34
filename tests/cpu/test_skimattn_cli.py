"""The command line of ``skimattn``: what it forwards to the build's, and what it shows of statistics."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from skimattn.codegen import cli as build_cli
from skimattn.sparse import StatLog, attention_modules, policy_of, sparsify
from skimattn.tools.cli import main

from tests.helpers.sparse_models import ToyModel
from tests.helpers.standin import ROOT


@pytest.fixture(autouse=True)
def _no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was built in the checkout, when and from what, does not matter here."""
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def direct(*arguments: str) -> Result:
    return CliRunner().invoke(build_cli.command, build_cli.expand(arguments))


def test_it_is_installed_under_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["skimattn"] == "skimattn.tools.cli:main"
    models = {"calibrate", "eval", "generate", "sparsify", "verify"}
    assert set(main.commands) == {"build", "cache", "demo", "explain", "list", "stats", *models}


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("list --set smoke --sm 90 100 --json", "--list --set smoke --sm 90 100 --json"),
        ("list --set smoke --only dtype=bf16 phase=decode", "--list --set smoke --only dtype=bf16 phase=decode"),
        ("explain mask=causal head_dim=128", "--explain mask=causal head_dim=128"),
        ("explain head_dim=96", "--explain head_dim=96"),
        ("build --set smoke --sm 90 --dry-run", "--set smoke --sm 90 --dry-run"),
        ("list --set nonsense", "--list --set nonsense"),
        ("explain colour=red", "--explain colour=red"),
    ],
)
def test_it_says_what_build_py_says(arguments: str, meant: str) -> None:
    found, wanted = invoke(*arguments.split()), direct(*meant.split())
    assert found.exit_code == wanted.exit_code
    assert found.output.splitlines()[-1] == wanted.output.splitlines()[-1]


def test_help_of_what_is_forwarded_is_the_builds() -> None:
    for name in ("build", "list", "explain"):
        found = invoke(name, "--help")
        assert (
            found.exit_code == 0 and found.output.startswith(f"Usage: skimattn {name}") and "--lineinfo" in found.output
        )
    assert invoke("explain").exit_code == 2 and "--explain expects at least one value" in invoke("explain").output
    assert "Show what every layer skipped" in invoke("stats", "--help").output


@pytest.fixture
def log(tmp_path: Path) -> Path:
    model, path = sparsify(ToyModel(2), {"threshold": 0.1}), tmp_path / "x.jsonl"
    with StatLog(path, model) as log:
        for step in range(4):
            for module in attention_modules(model).values():
                policy = policy_of(module)
                assert policy is not None and policy.collector is not None
                counts = policy.collector.counts("decode", 1, 2, torch.device("cpu"))
                assert counts is not None
                counts += torch.tensor([10, 3 * step])
            log.step(requests={"decode": 2}, tokens={"decode": 2})
    return path


def test_statistics_are_shown(log: Path, tmp_path: Path) -> None:
    found = invoke("stats", str(log), "--png", str(tmp_path / "x.png"), "--width", "30")
    assert found.exit_code == 0 and "4 steps, 2 layers, 1 ranks" in found.output
    assert "layers.1.self_attn  40       18       45.0 %" in found.output and "decode: 8 requests" in found.output
    assert Image.open(tmp_path / "x.png").size == (32, 16)
    sums = json.loads(invoke("stats", str(log), "--json").output)
    assert sums["phases"]["decode"]["sparsity"] == 0.45 and sums["steps"] == 4 and "prefill" not in sums["phases"]


def test_it_runs_as_a_command_that_needs_no_pydantic(log: Path) -> None:
    code = "import sys; sys.modules['pydantic'] = None; from skimattn.tools.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "stats", str(log)], capture_output=True, text=True, check=True)
    assert "all                 80       36       45.0 %" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [("nonsense\n", "expected a log that StatLog wrote"), (None, "does not exist")],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "file").write_text(text)
    found = invoke("stats", str(tmp_path / "file"))
    assert found.exit_code and words in found.output and "Traceback" not in found.output


def test_pictures_say_what_they_need(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    found = invoke("stats", str(log), "--png", "x.png")
    assert found.exit_code == 1 and "pip install 'skimattn[pictures]'" in found.output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("calibrate", "--target-decode --per --cost --budget --held-out --state --data --lengths --plot --out --json"),
        ("verify", "--config --data --lengths --new-tokens --max-perplexity-change --json"),
        ("sparsify", "--export --config --target --samples --prompt --do-sample --temperature --top-p --json"),
        ("generate", "--prompt --prompt-file --chat --config --max-new-tokens --do-sample --seed --stats"),
    ],
)
def test_commands_of_models_have_their_options(command: str, words: str) -> None:
    text = invoke(command, "--help").output
    assert text.startswith(f"Usage: main {command} [OPTIONS] MODEL") and "--dtype" in text and "--device" in text
    assert [word for word in words.split() if word not in text] == []


def test_help_needs_no_engine() -> None:
    code = (
        "import sys; sys.modules.update(transformers=None, pydantic=None, torch=None);"
        "from skimattn.tools.cli import main; main()"
    )
    for command in ("calibrate", "verify", "sparsify", "generate"):
        done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "MODEL" in done.stdout, done.stderr


@pytest.mark.parametrize(("missing", "extra"), [("transformers", "hf"), ("matplotlib.figure", "calibrate")])
def test_a_missing_extra_is_named(missing: str, extra: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from skimattn.tools.cli import main; main()"
    words = ["calibrate", "nothing", "--target", "0.5", "--plot", str(tmp_path / "x.png")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("Error: ") and done.stderr.endswith(f"pip install 'skimattn[{extra}]'\n")
    assert len(done.stderr.splitlines()) == 1


def test_several_files_follow_one_option(tmp_path: Path) -> None:
    """What is said of the last one shows that all were read as files of ``--data``."""
    (tmp_path / "a").touch()
    found = invoke("verify", "model", "--data", str(tmp_path / "a"), str(tmp_path / "b"), "--json")
    assert found.exit_code == 2 and f"File '{tmp_path}/b' does not exist" in found.output
    assert "--data expects at least one value" in invoke("verify", "model", "--data", "--json").output
