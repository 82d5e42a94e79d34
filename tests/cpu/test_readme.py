"""What README.md and CONTRIBUTING.md say is true: commands, options, names, example, matrix, how to add a mask."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from skimattn.codegen import cli, support
from skimattn.tools.cli import main

from tests.helpers.standin import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TESTS = "python -m pytest -n auto --dist worksteal"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COPIED = (
    "build.py",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "bench",
    "codegen",
    "runtime",
    "templates",
    "tests",
)


@pytest.fixture(autouse=True)
def _no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was built in the checkout, when and from what, does not matter here."""
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced code of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    """Every command of the bash blocks, those in lists too, as words; ``&&`` separates commands."""
    text = re.sub(r"^ +(?=\S)", "", text, flags=re.MULTILINE)
    lines = [line for block in blocks("bash", text) for line in block.splitlines()]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def options_of(*owners: object) -> set[str]:
    return {option for owner in owners for parameter in vars(owner)["params"] for option in parameter.opts}


def test_length() -> None:
    assert len(README.splitlines()) < 270


def test_support_matrix_is_that_of_the_tables() -> None:
    assert support.between_markers(README) == support.table() + "\n", f"rewrite it with: {support.COMMAND}"


def test_support_matrix_is_rewritten_and_a_readme_without_markers_refused(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{support.BEGIN}\nold\n{support.END}\nafter\n")
    assert support.update(readme) and not support.update(readme)
    assert readme.read_text() == f"before\n{support.BEGIN}\n{support.table()}\n{support.END}\nafter\n"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="expected the lines <!-- support matrix"):
        support.update(readme)


def test_fresh_machine_commands_are_one_line_each() -> None:
    first, second = blocks("bash", section("Start"))
    assert first.count("\n") == second.count("\n") == 1
    assert first.endswith("&& python -m skimattn demo\n") and second.endswith(f"&& {TESTS}\n")
    assert f"\n{TESTS}\n" in (ROOT / ".ci/run").read_text()
    assert (ROOT / "constraints.txt").is_file()
    installs = [words[2:] for words in commands() if words[:2] == ["pip", "install"]]
    assert installs == [["-e", target, "-c", "constraints.txt"] for target in (".", ".[test]")]
    assert "test" in PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    "words",
    [
        words
        for words in [*commands(), *commands(CONTRIBUTING)]
        if words[:2] == ["python", "build.py"] and "mask=anticausal" not in words
    ],
    ids=" ".join,
)
def test_build_commands_are_valid(words: list[str], tmp_path: Path) -> None:
    arguments, is_rejected = words[2:], False
    if "--explain" in arguments:
        is_rejected = "head_dim=88" in arguments
    else:
        arguments += ["--out", str(tmp_path / "out"), *([] if "--list" in arguments else ["--dry-run"])]
    if "--model" in arguments:
        (tmp_path / "config.json").write_text('{"head_dim": 128, "dtype": "bfloat16"}')
        arguments[arguments.index("--model") + 1] = str(tmp_path / "config.json")
    result = CliRunner().invoke(cli.command, cli.expand(arguments))
    assert result.exit_code == int(is_rejected), result.output


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "skimattn"], ids=" ".join)
def test_commands_for_models_are_valid(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are understood: what is missing is but the model. The guide's, which run, are the same."""
    monkeypatch.chdir(tmp_path)
    for name in ("book.txt", "found.json"):
        (tmp_path / name).write_text("{}")
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code == 1 and "Usage" not in result.output, result.output
    guide = (ROOT / "docs" / "calibrate.md").read_text()
    assert f"skimattn {words[1]} " in guide


def test_every_command_is_one_of_those_that_are_checked() -> None:
    modules = ("skimattn", "skimattn.codegen.support", "pytest", "tests.cpu.test_matrix")
    known = {("python3", "-m", "venv"), (".", ".venv/bin/activate"), ("pip", "install"), ("python", "build.py")}
    known |= {("python", "-m", module) for module in modules} | {("skimattn",)}
    for words in commands():
        assert any(tuple(words[: len(start)]) == start for start in known), words


def test_every_option_exists() -> None:
    known = options_of(cli.command, *main.commands.values()) | {"--help", "--dist"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= known


def test_names_that_are_quoted_exist() -> None:
    sources = "".join(path.read_text() for folder in ("runtime", "codegen") for path in (ROOT / folder).rglob("*.py"))
    for variable in set(re.findall(r"SKIMATTN_\w+", README + CONTRIBUTING)):
        assert f'"{variable}"' in sources, variable
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", README + CONTRIBUTING):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:codegen|runtime|tests|templates|bench)/[\w./]+\.\w+)`", README + CONTRIBUTING):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"python (\w[\w/]*/\w+\.py)", README + CONTRIBUTING):
        assert (ROOT / path).is_file(), path


def test_pre_commit_runs_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    entries = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(entries) == 5
    for entry in entries:
        assert entry.replace(" --force-exclude", "") in ci, entry


def test_folders_are_those_of_the_checkout() -> None:
    for folder in re.findall(r"^\| `(\w+)/` \|", section("Folders"), re.MULTILINE):
        assert folder == "generated" or (ROOT / folder).is_dir(), folder


def test_example_runs_as_it_stands() -> None:
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 10
    on_cpu = example.replace('"cuda"', '"cpu"').replace("4096", "256")
    assert on_cpu.count('"cpu"') == 2 and "256" in on_cpu
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(on_cpu, "README.md", "exec"), {})
    assert "skim_sm90_prefill_bf16_d128_causal_stat" in said.getvalue()


def apply_diff(text: str, root: Path) -> None:
    """Apply a diff without line numbers: per file, consecutive lines whose old form occurs exactly once."""
    for part in re.split(r"^--- ", text, flags=re.MULTILINE)[1:]:
        name, *lines = part.splitlines()
        old = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
        new = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
        held = (root / name).read_text()
        assert held.count(old) == 1, f"{name}: expected once: {old}"
        (root / name).write_text(held.replace(old, new))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A copy of the checkout, with its packages where ``PYTHONPATH`` finds them."""
    root, packages = tmp_path / "checkout", tmp_path / "path" / "skimattn"
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            root.mkdir(exist_ok=True)
            shutil.copy(source, root)
    packages.mkdir(parents=True)
    for target in [*(root / "runtime").iterdir(), root / "codegen", root / "templates"]:
        (packages / target.name).symlink_to(target)
    return root


def test_a_mask_is_added_as_described(scratch: Path) -> None:
    text = section("Add a mask in ten minutes")
    (diff,) = blocks("diff", text)
    apply_diff(diff, scratch)
    cache = os.environ.get("SKIMATTN_EMULATOR_CACHE", str(ROOT / "generated" / "emulator"))
    environment = {**os.environ, "PYTHONPATH": str(scratch.parent / "path"), "SKIMATTN_EMULATOR_CACHE": cache}

    def run(words: list[str]) -> str:
        assert words[0] == "python"
        command = [sys.executable, *words[1:]]
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    golden, matrix, emulator, build = commands(text)
    run(golden)
    assert "anticausal" in (scratch / "tests/cpu/golden/kernels.txt").read_text()
    assert "rewritten" in run(matrix) and "| `anticausal` |" in (scratch / "README.md").read_text()
    assert emulator[-2:] == ["-k", "anticausal"]
    chosen = "anticausal and prefill_bf16_d64 and stat and (batched or ragged)"  # of both architectures
    assert "4 passed" in run([*emulator[:-1], chosen])
    assert "57 of 57 kernels would be compiled" in run([*build, "--dry-run"])
