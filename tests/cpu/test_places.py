"""Where builds go and calls look, and which command the advice names: in a checkout, elsewhere, of a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
from skimattn._select import kernels
from skimattn.codegen import metadata, places, sets
from skimattn.codegen.errors import MetadataError

from tests.helpers.standin import ROOT


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(places.VARIABLE, raising=False)


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package had been installed."""
    monkeypatch.setattr(places, "checkout", lambda: None)


def test_a_checkout_builds_where_it_looks_from_whatever_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.folder() == places.default_output() == ROOT / "generated"
    assert places.is_found(ROOT / "generated") and not places.is_found(tmp_path / "generated")


@pytest.mark.usefixtures("wheel")
def test_a_wheel_looks_nowhere_and_builds_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.folder() is None
    assert places.default_output() == tmp_path / "generated" and not places.is_found(tmp_path / "generated")


@pytest.mark.parametrize("installed", ["checkout", "wheel"])
def test_the_variable_decides_for_both(installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if installed == "wheel":
        monkeypatch.setattr(places, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(places.VARIABLE, "kernels")
    assert places.default_output() == tmp_path / "kernels"  # which a build makes
    (tmp_path / "kernels").mkdir()
    (tmp_path / "link").symlink_to("kernels")
    assert places.folder() == tmp_path / "kernels"
    assert places.is_found(tmp_path / "link") and not places.is_found(tmp_path)


def test_what_to_set_can_be_pasted() -> None:
    assert places.setting(Path("/a b/c")) == "export SKIMATTN_KERNELS='/a b/c'"


def test_the_command_exists_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert places.command() == "python build.py"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert places.command() == f"python {ROOT}/build.py"
    (tmp_path / "here").rmdir()
    assert places.command() == f"python {ROOT}/build.py"


@pytest.mark.usefixtures("wheel")
def test_a_wheel_is_never_told_to_run_build_py(tmp_path: Path) -> None:
    assert sets.build_command(sets.SMOKE[0]).startswith("skimattn-build --sm 90 --only ")
    path = tmp_path / "metadata.json"
    foreign = '{"package": "skimattn", "format": 0}'
    for text in ("{", foreign):
        path.write_text(text)
        with pytest.raises(MetadataError, match=r"run skimattn-build again$"):
            metadata.load(path)


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MetadataError, match=r"file/metadata.json: cannot be read: Not a directory$"):
        metadata.load(tmp_path / "file" / "metadata.json")
    (tmp_path / "metadata.json").mkdir()
    monkeypatch.setenv(places.VARIABLE, str(tmp_path))
    with pytest.raises(MetadataError, match=r"/metadata.json: cannot be read: Is a directory$"):
        kernels.built()

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(MetadataError, match=r"/metadata.json: cannot be read: Permission denied$"):
        kernels.built()
