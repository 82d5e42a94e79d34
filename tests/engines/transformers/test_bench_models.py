"""``bench models`` on a tiny model on the CPU: parts, state, decode in batches, a dense pass, token files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimattn.integrations.transformers import Loaded, TextForward, load
from skimattn.sparse import ModelRunner, SkipSoftmaxConfig, restore, sparsify
from skimattn.sparse.policy import PhaseRule

from bench import models, models_decode, models_run, models_texts, results, texts
from bench.models_decode import Batches
from bench.models_fits import dense_pass

from .folders import save_text, save_tiny
from .recording import policies

LENGTH = 512
SMALL = "--windows 2 --calibration 1 --alone 1 --heads-alone 1 --steps 3 --steps-calibrated 2 --decode-batch 2"
SMALL += (
    " --needles 2 --length-windows 1 --lengths 256 512 --fit-lengths 384 1024 --targets 0.1 0.3 --length-targets 0.3"
)
SMALL += " --thresholds 0.3 0.5 0.7 0.9 --tried-alone 0.1 0.6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    save_tiny(made / "model", begins=True)
    for index in range(10):
        (made / "notes").mkdir(exist_ok=True)
        save_text(made / "notes" / "one.txt")
        whole = (made / "notes" / "one.txt").read_text()
        (made / "notes" / f"{index}.txt").write_text(f"{index} " + whole[1400 * index :][:2400])
    (made / "notes" / "one.txt").unlink()
    options = ["--length", str(LENGTH), "--needles", "2", "--tokens", "4000", "6000", "--least", "100"]
    arguments = [str(made / "model"), f"a={made / 'notes'}", f"b={made / 'notes'}"]
    assert texts.main([*arguments, *options, "--out", str(made / "bad.npz")]) == 1, "b has nothing that a has not"
    assert texts.main([*arguments[:2], *options, "--out", str(made / "texts.npz")]) == 0
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load(folder / "model")


def run(folder: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    arguments = [str(folder / "model"), str(folder / "texts.npz"), "--length", str(LENGTH), *SMALL.split()]
    arguments += ["--state", str(folder / "state"), "--out", str(out), *options]
    status = models.main(arguments)
    [path] = out.glob("*.json")
    return status, results.load(path)


def test_token_files_hold_each_text_once(folder: Path, loaded: Loaded) -> None:
    made = models_texts.load(folder / "texts.npz")
    assert made.names == ["a"] and made.beginning == tuple(loaded.beginning) == (1,)
    windows = {use: made.windows(use, 300, 8) for use in models_texts.USES}
    assert all(len(one) == 300 and one[0] == 1 for some in windows.values() for one in some)
    calibrated = {tuple(one[1:]) for one in windows["calibration"]}
    assert not calibrated & {tuple(one[1:]) for one in windows["evaluation"]}
    for row, answer in zip(made.asked(2), made.answers, strict=True):
        assert len(row) == LENGTH and loaded.tokenizer.decode(row[-answer:])[:7].isdigit() and answer == 8


def test_parts_go_on_where_they_were_cut_off(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Batches.run
    monkeypatch.setattr(Batches, "run", None)
    with pytest.raises(TypeError):
        run(folder, tmp_path / "cut", "--methods", "layers by loss")
    [path] = (tmp_path / "cut").glob("*.json")
    cut = results.load(path)
    assert [case["case"] for case in cut["cases"]] == [
        "curves prefill one threshold",
        "curves prefill layers by loss",
    ]
    monkeypatch.setattr(Batches, "run", made)
    monkeypatch.setattr(models_run, "TextForward", None)  # prompts were measured
    ways = ("--methods", "layers by loss")
    status, _ = run(folder, tmp_path / "decode", "--parts", "curves", *ways)
    assert status == 0
    monkeypatch.undo()
    status, found = run(folder, tmp_path / "all", *ways)
    assert status == 0 and found["finished"] and found["plan"]["length"] == LENGTH
    assert found["cases"][:2] == cut["cases"]
    assert {(case["part"], case["phase"]) for case in found["cases"]} == {
        (part, phase) for part in ("curves", "needles", "lengths") for phase in ("prefill", "decode")
    }
    skipping = 0
    for case in found["cases"]:
        if case["part"] == "curves":
            had = [point for point in case["points"] if "share" in point]
            assert len(had) == 2 or all("expected" in point["why"] for point in case["points"] if point not in had)
            skipping += sum(point["share"] > 0 for point in had)
            assert all(point["added"]["low"] <= point["added"]["mean"] <= point["added"]["high"] for point in had)
    assert skipping >= 2, found["cases"]
    [own, *_] = [case for case in found["cases"] if case["part"] == "lengths" and case["phase"] == "prefill"]
    assert [row["length"] for row in own["rows"]] == [256, 512] and own["calibrated_at"] == [384, 1024]
    assert {path.suffix for path in (tmp_path / "all").iterdir()} >= {".json", ".md"}
    assert "skipped % at +0.3 %" in capsys.readouterr().out
    lines = (folder / "state" / "measured.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines) and "model" in json.loads(lines[0]), "the state is whole"


def test_another_plan_needs_another_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "state").mkdir(exist_ok=True)
    arguments = [str(folder / "model"), str(folder / "texts.npz"), "--length", str(LENGTH), "--out", str(tmp_path)]
    arguments += ["--state", str(tmp_path / "state"), "--parts", "needles", "--phases", "prefill", *SMALL.split()]
    assert models.main([*arguments, "--targets", "0.04", "--methods", "one threshold"]) == 0
    assert models.main([*arguments, "--steps", "4"]) == 1
    assert "state: expected the file of this calibration" in capsys.readouterr().err
    assert models.main([*arguments, "--methods", "by guessing"]) == 1
    assert "--methods: expected some of one threshold, layers by loss" in capsys.readouterr().err


@pytest.mark.parametrize("at_once", [1 << 17, 1000])
def test_a_batch_decodes_as_its_windows_do(
    loaded: Loaded, folder: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_decode, "_TOKENS", at_once)
    windows = models_texts.load(folder / "texts.npz").windows("evaluation", LENGTH, 3)
    tokens, batches = torch.tensor(windows), Batches(loaded.model, LENGTH, 4)
    rule = PhaseRule(0.4, 0.0)
    for rules in ({}, {"decode": rule}):
        with policies(loaded.model, rules):  # type: ignore[arg-type]
            together = batches.run(tokens).nats.mean(1)
            alone = [TextForward(loaded.model, new_tokens=4)(window, "decode") for window in windows]
        assert together.tolist() == pytest.approx([one.loss for one in alone], abs=0.02)
        assert alone[0].length == batches.keys
    config = SkipSoftmaxConfig(threshold={"decode": 0.4})
    sparsify(loaded.model, config)
    telling = Batches(loaded.model, LENGTH, 4, dropped=True)
    whole = ModelRunner(loaded.model, telling).run([token for window in windows for token in window], "decode")
    each = TextForward(loaded.model, new_tokens=4, dropped=True, divergence=True)
    parts = [ModelRunner(loaded.model, each).run(window, "decode") for window in windows]
    restore(loaded.model)
    for layer, counts in whole.counts.items():
        # A bf16 sum more or less can tip a tile.
        assert np.abs(counts - sum(part.counts[layer] for part in parts)).max() <= 1  # type: ignore[operator]
        assert counts[:, 1].sum() > 0
        dropped = np.mean([part.dropped[layer] for part in parts], axis=0)
        assert np.allclose(whole.dropped[layer], dropped, rtol=0.05, atol=1e-5)
    assert whole.divergence == pytest.approx(float(np.mean([part.divergence for part in parts])), rel=0.05)


def test_a_dense_pass_counts_what_first_layers_skip(loaded: Loaded, folder: Path) -> None:
    [window] = models_texts.load(folder / "texts.npz").windows("evaluation", LENGTH, 1)
    dense = TextForward(loaded.model)(window, "prefill").loss
    with dense_pass(loaded.model, (0.1, 0.5)) as counts:
        assert TextForward(loaded.model)(window, "prefill").loss == dense
        found = counts.points("x", LENGTH)
    assert loaded.model.config._attn_implementation == "skimattn" and not counts.counts
    for point in found:
        sparsify(loaded.model, SkipSoftmaxConfig(threshold={"prefill": point.threshold}))
        real = ModelRunner(loaded.model, TextForward(loaded.model)).run(window, "prefill").counts
        restore(loaded.model)
        first, second = (int(one[:, 1].sum()) for one in real.values())
        assert point.visited == sum(int(one[:, 0].sum()) for one in real.values())
        assert first < point.skipped and abs(point.skipped - first - second) <= 0.1 * point.visited
    assert found[0].skipped < found[1].skipped
