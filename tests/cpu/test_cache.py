"""The cache of kernels compiled on first use: who may fill it, who may read it, and what stays in it."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from skimattn.codegen import cache, emit, jit, sets
from skimattn.codegen import compile as compile_module
from skimattn.codegen.errors import BuildError
from skimattn.codegen.files import TEMPORARY
from skimattn.codegen.report import Report, read_report, write_result
from skimattn.tools import cli

from tests.helpers import standin

SPEC = sets.SMOKE[0]
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of several users")
KEY = "0123456789abcdef" * 4


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder that every user can reach, which pytest's own folders are not; compiling takes no time."""
    log = "Used 8 registers\n0 bytes spill stores, 0 bytes spill loads"
    monkeypatch.setattr(
        compile_module, "compile_unit", lambda unit, toolchain: (b"cubin of " + unit.name.encode(), log)
    )
    umask = os.umask(0o022)
    with tempfile.TemporaryDirectory() as shared:
        os.chmod(shared, 0o755)
        monkeypatch.setenv(emit.TEMPLATES_VARIABLE, str(standin.write_templates(Path(shared) / "templates")))
        monkeypatch.setenv(cache.VARIABLE, f"{shared}/cache")
        yield Path(shared) / "cache"
    os.umask(umask)


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def reading_only(folder: Path) -> Iterator[None]:
    """As a user who cannot write to ``folder``: for root, another one."""
    if os.geteuid() == 0:
        toolchain = jit.find_toolchain("nvrtc")
        with as_user(NOBODY), pytest.MonkeyPatch.context() as patch:
            patch.setattr(jit, "find_toolchain", lambda compiler: toolchain)  # where the user cannot read packages
            yield
    else:
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)


def never(*_: object) -> None:
    raise AssertionError("compiled")


def put(folder: Path, number: int, size: int = 1000, age: float = 0.0) -> str:
    """Write a made-up entry that was used ``age`` seconds ago."""
    name, cubin = f"skim_kernel-{number:016x}", b"x" * size
    cache.prepare(folder)
    report = Report(KEY, "", hashlib.sha256(cubin).hexdigest(), "nvrtc 1.2.3", 8, 0, 1.0, 1)
    write_result(folder / name, cubin, report)
    (folder / f"{name}.lock").touch()
    for suffix in ("json", "cubin", "lock"):
        os.utime(folder / f"{name}.{suffix}", (time.time() - age,) * 2)
    return name


def test_what_root_filled_another_user_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = jit.compile_spec(SPEC)
    monkeypatch.setattr(jit, "compile_kernel", never)
    before = sorted(path.name for path in folder.iterdir())
    with reading_only(folder):
        assert jit.compile_spec(SPEC) == filled
    assert sorted(path.name for path in folder.iterdir()) == before


def test_no_lock_is_needed_for_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = jit.compile_spec(SPEC)
    monkeypatch.setattr(jit, "locked", never)
    assert jit.compile_spec(SPEC) == filled


def test_a_cache_that_is_only_read_and_lacks_the_kernel_is_one_error(folder: Path) -> None:
    folder.mkdir(0o755)
    text = rf"^{SPEC.name}: it is not in the cache folder {folder}, which .*Permission denied.*set {cache.VARIABLE} "
    with reading_only(folder), pytest.raises(BuildError, match=text):
        jit.compile_spec(SPEC)


def test_a_file_in_the_place_of_the_folder_is_named(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(BuildError, match=rf"^{SPEC.name}: .* {folder}, .*Not a directory.*{cache.VARIABLE}"):
        jit.compile_spec(SPEC)


def test_without_a_home_it_says_what_to_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in (cache.VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        BuildError, match=rf"uid {os.getuid()} has no home folder and HOME is not set; set {cache.VARIABLE}"
    ):
        jit.compile_spec(SPEC)


def test_the_default_folder_follows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(cache.VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "skimattn"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache.default_folder() == tmp_path / ".cache" / "skimattn"


def test_folders_are_private_unless_root_names_one(folder: Path, tmp_path: Path) -> None:
    cache.prepare(tmp_path / "deep" / "own")
    assert stat.S_IMODE((tmp_path / "deep" / "own").stat().st_mode) == 0o700
    cache.prepare(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == (0o755 if os.geteuid() == 0 else 0o700)
    folder.chmod(0o750)
    cache.prepare(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750  # what somebody chose stays


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702, 0o1777])
def test_a_folder_that_others_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    text = (
        rf"the cache folder {folder} is not trusted: others .* write to it \(mode {mode:04o}\); set {cache.VARIABLE} "
    )
    for use in (lambda: jit.compile_spec(SPEC), lambda: cache.clear(folder)):
        with pytest.raises(BuildError, match=text):
            use()
    assert not list(folder.iterdir())


@as_root
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    jit.compile_spec(SPEC)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(BuildError, match=rf"not trusted: it belongs to uid {NOBODY}, which is neither this user \(0\)"):
        jit.compile_spec(SPEC)


def test_a_link_in_the_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BuildError, match=rf"the cache folder {folder} is not trusted: it is a symbolic link; set"):
        jit.compile_spec(SPEC)


@pytest.mark.parametrize("suffix", ["json", "cubin"])
@pytest.mark.parametrize("how", ["link", "mode", pytest.param("owner", marks=as_root)])
def test_planted_entries_are_not_read_but_replaced(folder: Path, tmp_path: Path, suffix: str, how: str) -> None:
    kernel, cubin = jit.compile_spec(SPEC)
    path = (folder / kernel.cubin).with_suffix(f".{suffix}")
    if how == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif how == "mode":
        path.chmod(0o664)
    else:
        os.chown(path, NOBODY, NOBODY)
    content = path.read_bytes()
    report = read_report((folder / kernel.cubin).with_suffix(".json"))
    assert report is not None
    key = report.content_key
    assert cache.read(folder, path.stem, key) is None
    assert jit.compile_spec(SPEC) == (kernel, cubin)
    assert cache.read(folder, path.stem, key) is not None
    assert not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o644
    if how == "link" and suffix == "json":
        assert (tmp_path / "elsewhere").read_bytes() == content  # nothing was written through it


def test_a_planted_lock_is_not_followed(folder: Path, tmp_path: Path) -> None:
    kernel, _ = jit.compile_spec(SPEC)
    lock = (folder / kernel.cubin).with_suffix(".lock")
    for path in (lock, folder / kernel.cubin):
        path.unlink()
    lock.symlink_to(tmp_path / "victim")
    with pytest.raises(BuildError, match="symbolic links"):
        jit.compile_spec(SPEC)
    assert not (tmp_path / "victim").exists()


def test_half_written_files_have_names_that_nobody_can_guess(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    replace = os.replace

    def note(source: str, target: Path) -> None:
        seen.append(Path(source).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    jit.compile_spec(SPEC)
    cache.clear(folder)
    jit.compile_spec(SPEC)
    assert len({*seen}) == len(seen) == 4
    assert all(name.endswith(TEMPORARY) for name in seen)


def test_what_was_used_longest_ago_goes_first(folder: Path) -> None:
    names = [put(folder, number, age=100.0 * (5 - number)) for number in range(5)]
    each = cache.entries(folder)[0].size
    assert cache.read(folder, names[0], KEY) is not None  # used now, though it is the oldest
    cache.trim(folder, max_bytes=3 * each)
    assert [entry.name for entry in cache.entries(folder)] == [names[0], names[4], names[3]]
    assert len(list(folder.iterdir())) == 9


def test_the_bound_is_kept_by_every_compilation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = put(folder, 1, age=50.0)
    monkeypatch.setattr(cache.trim, "__defaults__", (1000,))
    kernel, _ = jit.compile_spec(SPEC)
    assert [entry.name for entry in cache.entries(folder)] == [kernel.cubin.removesuffix(".cubin")]
    assert not list(folder.glob(f"{old}*"))


def test_what_killed_processes_left_goes_after_an_hour(folder: Path) -> None:
    whole = put(folder, 1, age=7200.0)
    names = {
        f"{whole}.cubin.abcdefgh{TEMPORARY}": 7200,
        f"skim_gone-{2:016x}.lock": 7200,
        f"skim_gone-{2:016x}.cubin.abcdefgh{TEMPORARY}": 7200,
        f"skim_now-{3:016x}.lock": 5,
    }
    for name, age in names.items():
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    (folder / "notes.txt").touch()
    cache.trim(folder)
    kept = {f"{whole}.{suffix}" for suffix in ("json", "cubin", "lock")}
    assert {path.name for path in folder.iterdir()} == {*kept, f"skim_now-{3:016x}.lock", "notes.txt"}


def test_clearing_removes_entries_and_nothing_else(folder: Path) -> None:
    assert cache.clear(folder) == 0  # there is no such folder
    put(folder, 1)
    put(folder, 2)
    (folder / "notes.json").touch()
    assert cache.clear(folder) == 2
    assert [path.name for path in folder.iterdir()] == ["notes.json"]


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["cache", *arguments])


def test_the_command_lists_and_clears(folder: Path) -> None:
    assert command().output == f"{folder}: 0 kernels, 0.0 MiB of at most 512 MiB\n"
    old, new = put(folder, 1, size=1 << 20, age=7200.0), put(folder, 2, size=1 << 20)
    first, *rows = command().output.splitlines()
    assert first == f"{folder}: 2 kernels, 2.0 MiB of at most 512 MiB"
    assert [row.split()[-1] for row in rows] == [new, old]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d    1\.00 MiB  skim_", row) for row in rows)
    assert command("--clear").output == f"2 kernels removed from {folder}\n"
    assert cache.entries(folder) == []


def test_the_command_refuses_in_one_line(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    for arguments in ([], ["--clear"]):
        result = command(*arguments)
        assert result.exit_code == 1
        assert re.fullmatch(rf"Error: the cache folder {folder} is not trusted: .*\n", result.output)
    folder.rmdir()
    folder.write_text("a file")
    result = command()
    assert result.exit_code == 1 and result.output.startswith("Error: ") and str(folder) in result.output
