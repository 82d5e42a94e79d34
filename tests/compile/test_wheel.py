"""The wheel: everything is in it, and it builds kernels outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSPECT = """
import sys
from pathlib import Path
import skimattn
from skimattn.codegen import emit, matrix, sets
assert Path(skimattn.__file__).is_relative_to(sys.argv[1]), skimattn.__file__
assert emit.templates_root().is_relative_to(sys.argv[1])
print(len(emit.render_kernel(sets.SMOKE[0])), "torch" in sys.modules)
"""

BESIDE = """
import site, sys
site.addsitedir(sys.argv[1])
from skimattn import attention
import skimattn.tools.cli
from skimattn.codegen import emit, matrix, sets
print(skimattn.__file__, matrix.__file__, emit.templates_root())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["cp", "-r", *_sources(), folder], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    (built,) = (folder / "dist").glob("skimattn-*.whl")
    return built


def _sources() -> list[str]:
    """What wheels are made of; copied, so that no build folder appears in the checkout."""
    names = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "runtime", "codegen", "templates", "editable"]
    return [name for name in names if (ROOT / name).exists()]


def test_it_holds_every_template_and_header(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (
        ("runtime", "skimattn"),
        ("codegen", "skimattn/codegen"),
        ("templates", "skimattn/templates"),
    ):
        for suffix in (".py", ".j2", ".cuh", ".typed"):
            for path in (ROOT / folder).rglob(f"*{suffix}"):
                assert f"{package}/{path.relative_to(ROOT / folder)}" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_it_builds_kernels_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("SKIMATTN_KERNELS", None)

    def python(*arguments: str) -> str:
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert python("-c", INSPECT, str(site)).split()[1] == "False"
    only = ["dtype=bf16", "head_dim=128", "mask=causal", "skip=dense", "paged=false", "phase=prefill"]
    text = python("-m", "skimattn.codegen", "--sm", "90", "--only", *only)
    assert "1 compiled, 0 up to date, 0 failed" in text
    assert (tmp_path / "generated" / "metadata.json").is_file()
    setting = f"SKIMATTN_KERNELS={tmp_path / 'generated'}"
    assert f"calls do not look in {tmp_path / 'generated'}; to make them: export {setting}" in text
    assert "build it: skimattn-build --sm 90 " in python("-m", "skimattn.codegen", "--explain", "mask=causal")
    looked = "from skimattn._select import kernels; print(len(kernels.built()))"
    assert python("-c", looked) == "0\n"
    environment |= dict([setting.split("=")])
    assert python("-c", looked) == "1\n"
    assert "calls do not look" not in python("-m", "skimattn.codegen", "--sm", "90", "--only", *only)


def test_an_editable_install_is_found_beside_a_checkout_of_its_name(tmp_path: Path) -> None:
    checkout, site = tmp_path / "skimattn", tmp_path / "site"
    checkout.mkdir()
    subprocess.run(["cp", "-r", *_sources(), checkout], cwd=ROOT, check=True)
    build = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=checkout, check=True, capture_output=True, timeout=120
    )
    (built,) = tmp_path.glob("skimattn-*.whl")
    zipfile.ZipFile(built).extractall(site)
    # -S and PYTHONPATH: everything that is installed here, but not the package of this checkout
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    command = [sys.executable, "-S", "-c", BESIDE, str(site)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(checkout / name) for name in ("runtime/__init__.py", "codegen/matrix.py", "templates")
    ]
