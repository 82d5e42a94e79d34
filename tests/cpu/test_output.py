"""The folder that builds write to: files of others in it, what is no folder, full disks, and ``--clean``."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from skimattn.codegen import cli, compile, metadata, ninja_file, output, pipeline, places, sets
from skimattn.codegen.errors import ArgumentError, BuildError
from skimattn.codegen.files import TEMPORARY
from skimattn.codegen.spec import KernelSpec

from tests.helpers import standin

SPECS = sets.SMOKE
OURS = '{\n "format": 1,\n "package": "skimattn",\n "kernels": []\n}\n'  # as the first version wrote it


@pytest.fixture(autouse=True)
def _compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever gets as far as compiling failed to refuse."""
    monkeypatch.setattr(ninja_file, "run", lambda *_: pytest.fail("it compiles"))


def specs_of(arch: str) -> set[KernelSpec]:
    return {spec for spec in SPECS if spec.arch == arch}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.command, cli.expand([str(argument) for argument in arguments]))


def one_line(result: Result) -> str:
    """The one line that a refusal is."""
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result
    (line,) = result.output.splitlines()
    return line


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the smoke set, made of pretended cubins."""
    folder = tmp_path / "out"
    build = pipeline.Build(folder, standin.TOOLCHAIN)
    standin.pretend_compiler(monkeypatch, build, SPECS)
    assert not build.run(SPECS, 1).failed
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.json", '{"name": "a data set"}'),
        ("metadata.json", "not even JSON"),
        ("build.ninja", "rule cc\n  command = cc $in\n"),
        ("build_log.json", '{"kernels": {}}'),
        (".ninja_log", "# ninja log v6\n"),
        (".lock", "4711\n"),
        ("include/skimattn/params.cuh", "// theirs\n"),
        ("sm90/skim_milk.json", "{}"),
    ],
)
def test_files_of_others_are_never_touched(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    before = contents(tmp_path)
    for more in ((), ("--dry-run",), ("--clean",), ("--clean", "--dry-run"), ("--clean", "--sm", "90")):
        line = one_line(invoke(*more, "--out", tmp_path))
        assert line == (
            "Error: --out: expected a folder without files that a build would overwrite "
            f"(got {tmp_path}: not ours: {name})"
        )
        assert contents(tmp_path) == before
    with pytest.raises(ArgumentError, match=rf"not ours: {name}\)$"):
        pipeline.Build(tmp_path, standin.TOOLCHAIN).run(SPECS, 1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["metadata.json", "build.ninja", "build_log.json"])
def test_files_of_others_in_a_folder_of_ours(name: str, built: Path) -> None:
    (built / name).write_text('{"theirs": 1}')
    for arguments in ([], ["--clean"]):
        assert one_line(invoke(*arguments, "--out", built)).endswith(f": not ours: {name})")
    (built / name).unlink()
    (built / name).symlink_to("nowhere")
    assert f"not ours: {name}" in one_line(invoke("--out", built))
    (built / name).unlink()
    (built / name).mkdir()
    assert f"not ours: {name}" in one_line(invoke("--clean", "--out", built))


def test_folders_of_earlier_versions_are_ours(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(OURS)
    output.require_own(tmp_path)
    (tmp_path / "metadata.json").write_text("[")  # damaged, and nothing vouches for it
    with pytest.raises(ArgumentError, match=r"not ours: metadata\.json"):
        output.require_own(tmp_path)
    (tmp_path / ".lock").touch()
    (tmp_path / "build.ninja").write_text("rule kernel\n  command = python -m skimattn.codegen.compile $stem\n")
    output.require_own(tmp_path)
    assert invoke("--clean", "--out", tmp_path).exit_code == 0
    assert not tmp_path.exists()


def test_a_build_that_begins_meanwhile_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_lock = output._is_lock

    def look(path: Path) -> bool:
        answer = is_lock(path)
        path.touch()
        return answer

    monkeypatch.setattr(output, "_is_lock", look)
    output.require_own(tmp_path)
    assert (tmp_path / ".lock").exists()


def test_a_folder_with_other_things_can_be_built_in(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert invoke("--dry-run", "--set", "smoke", "--out", tmp_path).exit_code == 0
    assert one_line(invoke("--clean", "--out", tmp_path)) == (
        f"Error: {tmp_path}: no build was made here, nothing is removed"
    )
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_out_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for out in (tmp_path / "file", tmp_path / "file" / "deep" / "below", tmp_path / "link"):
        blocking = tmp_path / out.relative_to(tmp_path).parts[0]
        wanted = f"expected a folder, or the name of one to be made (got {out}: {blocking} is no folder)"
        for more in ((), ("--dry-run",), ("--clean",)):
            assert one_line(invoke(*more, "--out", out)) == f"Error: --out: {wanted}"
    assert "cannot be read: Not a directory" in one_line(invoke("--list", "--out", tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str | Path, *_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("skimattn.codegen.files.os.open", refuse)
    assert one_line(invoke("--out", tmp_path)) == f"Error: {tmp_path}/.lock: Permission denied"
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert one_line(invoke("--out", tmp_path / "new")) == f"Error: {tmp_path}/new: Permission denied"


def full_disk(*_: object) -> None:
    """As writing to a descriptor fails, whose error names no file."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skimattn.codegen.files.os.fchmod", full_disk)
    line = one_line(invoke("--set", "smoke", "--out", tmp_path))
    assert line == f"Error: {tmp_path}/include/skimattn/params.cuh: No space left on device"
    assert contents(tmp_path) == {".lock": b""}


def test_a_full_disk_while_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sm90").mkdir()
    (tmp_path / "sm90" / "k.cu").write_text('extern "C" __global__ void k() {}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("skimattn.codegen.files.os.fchmod", full_disk)
    assert compile.main(["--compiler", "nvrtc", "--version", _nvrtc(), "--headers", "include", "sm90/k"]) == 1
    assert capsys.readouterr().err == "[Errno 28] No space left on device: 'sm90/k.cubin'\n"


def _nvrtc() -> str:
    from skimattn.codegen.toolchain import find_toolchain

    return find_toolchain("nvrtc").version


def test_metadata_that_cannot_be_read(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "metadata.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    path = built / "metadata.json"
    assert one_line(invoke("--list", "--out", built)) == f"Error: {path}: cannot be read: Permission denied"
    for more in ((), ("--clean",), ("--clean", "--sm", "90")):
        assert one_line(invoke(*more, "--out", built)) == f"Error: {path}: Permission denied"


def test_a_dry_clean_lists_and_removes_nothing(built: Path) -> None:
    (built / "notes.txt").write_text("mine")
    before = contents(built)
    lines = invoke("--clean", "--dry-run", "--out", built).output.splitlines()
    assert set(lines[:-1]) == before.keys() - {"notes.txt"} and len(lines) == len(before)
    assert lines[-1] == f"{len(before) - 1} files would be removed from {built}; nothing was"
    assert contents(built) == before
    done = invoke("--clean", "--out", built)
    assert done.output == f"{len(before) - 1} files removed from {built}\n"
    assert contents(built) == {"notes.txt": b"mine"}


def test_clean_of_one_architecture_keeps_the_other(built: Path) -> None:
    (built / "sm100" / f"skim_x.cubin.a1{TEMPORARY}").write_text("left by a killed compiler")
    before = contents(built)
    gone = {name for name in before if name.startswith("sm100/")}
    lines = invoke("--clean", "--sm", "100", "--dry-run", "--out", built).output.splitlines()
    assert set(lines[:-1]) == gone and len(gone) == 3 * len(specs_of("sm100")) + 1
    assert contents(built) == before
    done = invoke("--clean", "--sm", "100", "--out", built)
    kept = specs_of("sm90")
    left = f"{len(kept)} kernels stay in {built}/metadata.json"
    assert done.output == f"{len(gone)} files of sm100 removed from {built}; {left}\n"
    after = contents(built)
    changed = {"metadata.json", "build_log.json"}
    assert after.keys() == before.keys() - gone
    assert all(after[name] == before[name] for name in after.keys() - changed)
    assert {row.spec for row in metadata.load(built / "metadata.json")} == kept
    assert not (built / "sm100").exists()
    assert b"skim_sm100" not in after["build_log.json"] and after["build_log.json"].count(b"skim_sm90") == len(kept)
    again = pipeline.Build(built, standin.TOOLCHAIN).run([spec for spec in SPECS if spec in kept], 1)
    assert not again.compiled and not again.failed
    assert contents(built)["build_log.json"] == after["build_log.json"]


def test_clean_of_one_architecture_beside_damaged_metadata(built: Path) -> None:
    (built / "metadata.json").write_text("{")
    before = contents(built)
    line = one_line(invoke("--clean", "--sm", "100", "--out", built))
    assert "metadata.json: not JSON" in line and line.endswith("; or remove everything with --clean alone")
    assert contents(built) == before
    assert invoke("--clean", "--out", built).exit_code == 0 and not built.exists()


def test_clean_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no build was made here"):
        (tmp_path / "thesis.tex").write_text("all of it")
        output.removal(tmp_path)
    for out in (tmp_path / "nowhere", tmp_path / "empty"):
        done = invoke("--clean", "--out", out)
        assert (done.exit_code, done.output) == (0, f"0 files removed from {out}\n")
        (tmp_path / "empty").mkdir(exist_ok=True)


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_build_says_what_to_set_if_calls_would_not_find_it(
    looked_at: bool, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if looked_at:
        monkeypatch.setenv(places.VARIABLE, os.path.relpath(built))
    else:
        monkeypatch.delenv(places.VARIABLE, raising=False)
    monkeypatch.setattr(cli, "find_toolchain", lambda *_: standin.TOOLCHAIN)
    done = invoke("--set", "smoke", *([] if looked_at else ["--out", built]))
    advice = f"calls do not look in {built}; to make them: export SKIMATTN_KERNELS={built}"
    assert done.exit_code == 0 and f"{len(SPECS)} up to date" in done.output
    assert (advice in done.output.splitlines()) is not looked_at
