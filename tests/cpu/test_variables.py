"""Environment variables: the usual words, empty as not set, and refusals that name the variable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from skimattn.codegen import variables
from skimattn.codegen.errors import ArgumentError

NAME = "SKIMATTN_TEST"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        *((word, True) for word in ("1", "TRUE", "On", "yes")),
        *((word, False) for word in ("0", "False", "off", "NO", " no ")),
    ],
)
def test_switches_take_the_usual_words(word: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, word)
    assert variables.switch(NAME, not wanted) is wanted


@pytest.mark.parametrize("default", [True, False])
def test_an_empty_variable_is_not_set(default: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv(NAME, value)
        assert variables.switch(NAME, default) is default
        assert variables.text(NAME) is variables.choice(NAME, "ab") is variables.folder(NAME) is None


@pytest.mark.parametrize("word", ["maybe", "2", " ", "disable"])
def test_other_words_are_refused_by_name(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, word)
    text = rf"^{NAME}: expected one of 1, true, on, yes, 0, false, off, no \(got '{word}'\)$"
    with pytest.raises(ArgumentError, match=text):
        variables.switch(NAME, True)
    with pytest.raises(ArgumentError, match=rf"^{NAME}: expected one of a, b \(got '{word}'\)$"):
        variables.choice(NAME, "ab")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "none", tmp_path / "file"):
        monkeypatch.setenv(NAME, str(wrong))
        with pytest.raises(ArgumentError, match=rf"^{NAME}: expected a folder that exists \(got '{wrong}'\)$"):
            variables.folder(NAME)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv(NAME, tmp_path.name)
    assert variables.folder(NAME) == variables.path(NAME) == tmp_path


def test_variables_are_read_in_one_place() -> None:
    reading = re.compile(r"environ\b.*(SKIMATTN_|VARIABLE)")
    sources = [path for folder in ("runtime", "codegen") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 20
    found = [path for path in sources if reading.search(path.read_text())]
    assert not found
