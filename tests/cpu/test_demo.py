"""``python -m skimattn demo`` on the reference: what it says, what it draws, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from skimattn.tools import demo
from skimattn.tools.cli import main
from skimattn.tools.tile_map import ASCII, BLOCKS, picture, text_lines


@pytest.fixture(autouse=True)
def _no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was built in the checkout, when and from what, does not matter here."""
    monkeypatch.setenv("SKIMATTN_KERNELS", str(tmp_path))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", "--device", "cpu", *arguments])


def share_skipped(output: str) -> float:
    line = next(line for line in output.splitlines() if "tiles skipped:" in line)
    return float(line.split(" visited, ")[1].split(" %")[0])


def indices(image: Image.Image) -> list[list[int]]:
    """The palette indices of a picture."""
    assert image.mode == "P"
    return np.asarray(image).tolist()


def test_it_runs_as_a_command(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "skimattn", "demo", "--seqlen", "600", "--png", str(tmp_path / "map.png")]
    done = subprocess.run([*arguments, "--device", "cpu"], capture_output=True, text=True, check=True)
    assert "skim_sm90_prefill_bf16_d128_causal_stat, tile 128x128" in done.stdout
    assert "path: reference, since the tensors are on the CPU" in done.stdout
    assert done.stdout.endswith("map.png\n") and indices(Image.open(tmp_path / "map.png"))
    assert not done.stderr


def test_tiles_really_are_skipped_and_hardly_change_the_answer() -> None:
    params = demo.prepare(2048, 1e-3, "cpu")
    lines = "\n".join(demo.report(params))
    assert share_skipped(lines) > 50
    against_dense = next(line for line in lines.splitlines() if "against the dense kernel" in line)
    assert 0 < float(against_dense.split("root mean square ")[1].removesuffix(" %")) < 1
    assert params.skim.skip_map is not None and params.skim.stats is not None
    assert params.skim.stats[0].tolist() == [
        [int((tiles > 0).sum()), int((tiles == 2).sum())] for tiles in params.skim.skip_map[0]
    ]


def test_threshold_0_skips_nothing_and_gives_the_dense_answer() -> None:
    output = invoke("--seqlen", "1000", "--threshold", "0").output
    assert share_skipped(output) == 0
    assert "against the dense kernel: largest 0, root mean square 0.000 %" in output


def test_the_dense_kernel_is_near_the_exact_answer() -> None:
    params = demo.prepare(777, 0.0, "cpu").dense
    out = demo.launch(params)
    assert isinstance(out, torch.Tensor)
    exact = demo.exact_attention(params.q, params.k, params.v)
    assert torch.allclose(out.float(), exact, atol=0.02) and out.shape == exact.shape


@pytest.mark.parametrize("seqlen", [1, 3, 64, 129])
def test_short_texts(seqlen: int) -> None:
    result = invoke("--seqlen", str(seqlen))
    assert result.exit_code == 0 and "█" in result.output


def test_the_input_is_the_same_every_time() -> None:
    assert all(torch.equal(*pair) for pair in zip(*(demo.planted_input(300, "cpu") for _ in "ab"), strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seqlen", "0"], "'--seqlen': 0 is not in the range x>=1"),
        (["--threshold", "1.5"], "'--threshold': 1.5 is not in the range 0<=x<=1"),
        (["--device", "tpu"], "'--device'"),
        (["--seqlen", "10", "--png", "no/such/folder.png"], "No such file"),
        (["--seqlen", "10", "--threshold", "nan"], "skip_softmax_threshold: expected"),
    ],
)
def test_refusals(arguments: list[str], words: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code != 0 and words in result.output and "Traceback" not in result.output


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(main, ["demo", "--device", "cuda"])
    assert result.exit_code == 1 and "--device: expected cpu" in result.output
    assert demo.pick_device(None) == ("cpu", "no GPU that torch can use")


def test_a_gpu_without_kernels_leaves_it_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert demo.pick_device(None) == ("cpu", "Old GPU: no kernels for compute capability 8.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert demo.pick_device(None) == ("cuda", "Old GPU")
    assert demo.pick_device("cpu") == ("cpu", "--device cpu")


def test_map_as_text() -> None:
    tiles = torch.tensor([[1, 0, 0], [2, 1, 0], [1, 2, 1]], dtype=torch.uint8)
    assert text_lines(tiles, ASCII, width=3) == ["#  ", ".# ", "#.#"]
    assert text_lines(tiles, ASCII, width=6) == ["##    ", "..##  ", "##..##"]
    assert text_lines(tiles, BLOCKS, width=2, height=2) == ["▓ ", "▒█"]
    assert text_lines(torch.ones(100, 1000, dtype=torch.uint8))[0] == "█" * 63
    assert len(text_lines(torch.ones(100, 1000, dtype=torch.uint8))) == 25


def test_map_as_a_picture() -> None:
    tiles = torch.tensor([[1, 0], [2, 1]], dtype=torch.uint8)
    assert indices(picture(tiles, (64, 128), size=4)) == [[1, 1, 0, 0], [2, 2, 1, 1]]
    large = indices(picture(tiles, (64, 128), size=64))
    assert len(large) == 32 and {len(row) for row in large} == {64}
    assert large[20][40] == 1 and large[20][10] == 2 and large[5][40] == 0 and large[16] == [3] * 64
    assert len(indices(picture(torch.ones(3000, 1500, dtype=torch.uint8), (64, 128)))) == 3000


def test_pictures_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = invoke("--seqlen", "10", "--png", "map.png")
    assert result.exit_code == 1 and "pip install 'skimattn[pictures]'" in result.output


@pytest.mark.parametrize(("encoding", "shades"), [("utf-8", BLOCKS), ("ascii", ASCII), (None, ASCII), ("?", ASCII)])
def test_terminals_without_blocks_get_ascii(encoding: str | None, shades: str) -> None:
    assert demo.shades_for(encoding) == shades
