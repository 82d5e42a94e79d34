"""``bench serve`` without vLLM: which servers run at once, what they are told, what comes of times and tiles."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import results, serve, serve_measure, serve_models, serve_plan, serve_servers, serve_table
from bench.serve_plan import DENSE, PEER, ROWS, SUBJECTS, Group, Row, contenders, groups
from bench.serve_profile import attention_ms
from bench.serve_servers import Server

MADE = contenders({0.5: 0.003, 0.9: 0.2}, [0, 0.5, 0.9])
ROW = Row("planted", 1024, 2, 2, 4, 2)


def test_contenders_are_the_peer_and_ours_at_each_share() -> None:
    assert [(one.name, one.ours, one.config) for one in MADE] == [
        (PEER, False, None),
        (DENSE, True, None),
        ("ours 0.5", True, {"threshold": 0.003}),
        ("ours 0.9", True, {"threshold": 0.2}),
    ]
    with pytest.raises(ValueError, match=r"--shares: expected some of 0, 0.5 \(got 0.7\)"):
        contenders({0.5: 0.1}, [0.7])


def test_caches_hold_the_requests_that_run_at_once() -> None:
    token = SUBJECTS["planted"].token_bytes
    assert token == 8 * 2 * 4 * 128 * 2
    assert Row("planted", 131072, 1, 1, 32, 5).cache_gb(token) == pytest.approx(2.19, abs=0.02)
    many = Row("planted", 32768, 64, 64, 64, 2)
    assert many.cache_gb(token) == pytest.approx(35.3, abs=0.3)
    assert replace(many, requests=1).cache_gb(token) == pytest.approx(many.cache_gb(token) / 64)


def shape(found: list[Group]) -> list[tuple[list[str], list[str]]]:
    return [([row.label for row in group.rows], [one.name for one in group.contenders]) for group in found]


def test_servers_run_at_once_where_they_fit() -> None:
    small, other, large = Row("x", 1024, 1, 1, 4, 2), Row("x", 2048, 1, 1, 4, 2), Row("x", 65536, 1, 1, 4, 2)
    names = [one.name for one in MADE]
    token, weights = 100_000, 1.0

    def planned(rows: list[Row], budget: float) -> list[Group]:
        return groups(rows, MADE, weights, token, budget)

    both = planned([small, other], 40)
    assert shape(both) == [(["x 1k c1", "x 2k c1"], names)] and both[0].longest == 2048 + 4
    assert both[0].cache_gb == other.cache_gb(token)
    pairs = [[PEER, name] for name in names[1:]]
    assert shape(planned([large], 30)) == [(["x 64k c1"], pair) for pair in pairs], "6.7 GB of cache each"
    assert shape(planned([large], 20)) == [(["x 64k c1"], [name]) for name in names]
    [alone, *_] = planned([large], 10)
    assert alone.cache_gb == pytest.approx(10 - 1 - 3.5), "requests wait for each other"
    with pytest.raises(ValueError, match=r"--memory: expected more than 4.5 GB \(got 4\)"):
        planned([small], 4)
    for group in planned([small, large, other], 60):
        need = len(group.contenders) * (group.cache_gb + weights + 3.5)
        assert need <= 60 and all(group.cache_gb >= row.cache_gb(token) for row in group.rows)


def test_the_short_list_is_part_of_the_grid() -> None:
    options = serve.parser().parse_args(["--short"])
    short = serve.chosen(options)
    assert {row.label for row in short} == {"smollm2 8064 c1", "smollm2 8064 c64", "planted 128k c1", "planted 32k c64"}
    assert len({row.label for row in ROWS}) == len(ROWS)
    assert {row.label for row in ROWS} >= {f"planted {size}k c{many}" for size in (32, 128) for many in (1, 64)}
    assert "planted 128k c64" in serve.listing(ROWS)
    assert all(row.length + row.new_tokens <= 8192 for row in ROWS if row.model == "smollm2"), "more it does not take"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "--only and --short: expected to leave a row"),
        (["--model", "x"], "--model: expected --replay beside it"),
        (["--config", "x"], "--config: expected --model and --replay beside it"),
        (["--model", "x", "--replay", "bad.jsonl"], "bad.jsonl:2: expected prompt (token ids) and output_tokens"),
        (["--model", "x", "--replay", "none.jsonl"], "none.jsonl: expected a request (got none)"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"prompt": [1], "output_tokens": 1}\n{"prompt": "text", "output_tokens": 1}\n')
    Path("none.jsonl").write_text("")
    assert serve.main(arguments) == 1 and said in capsys.readouterr().err


def test_requests_of_an_evaluation_are_replayed(tmp_path: Path) -> None:
    file, folder = tmp_path / "ids.jsonl", tmp_path / "model"
    lines = [{"prompt": [5] * size, "output_tokens": new, "task": "a", "document": 0} for size, new in ((7, 3), (9, 2))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.mkdir()
    about = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512, "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(about))
    asked = ["--model", str(folder), "--replay", str(file), "--concurrency", "1", "4", "--rounds", "2"]
    options = serve.parser().parse_args([*asked, "--config", "found.json"])
    rows = serve.chosen(options)
    assert [(row.label, row.requests, row.new_tokens, row.rounds) for row in rows] == [
        ("replay 9 c1", 2, 3, 2),
        ("replay 9 c4", 2, 3, 2),
    ]
    subject = serve.subject_of(folder)
    assert subject.token_bytes == 3 * 2 * 2 * 64 * 2
    made = serve.asked_of(options, subject)
    assert [one.name for one in made] == [PEER, DENSE, "ours found"] and made[2].config.endswith("/found.json")
    assert serve.prepare(rows, options, tmp_path) == (folder, subject, dict.fromkeys(rows, file))
    assert serve_models.read_requests(file) == lines


def test_texts_begin_at_places_of_their_own() -> None:
    found = serve_models.text_prompts(range(10), 25, 3)
    assert [len(one) for one in found] == [25] * 3 and [one[0] for one in found] == [0, 3, 6]
    assert found[1][:12] == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    planted = serve_models.planted_prompts(100, 2, 50)
    assert [one[0] for one in planted] == [serve_models.SINK] * 2 and planted[0] != planted[1]
    assert all(2 <= token < 50 for one in planted for token in one[1:])
    assert planted == serve_models.planted_prompts(100, 2, 50), "every server gets the same"


def test_sinks_are_spread_evenly_over_layers_and_heads() -> None:
    sizes = serve_models.Planted()
    by_layer = [[sizes.sink(layer, head) for head in range(sizes.heads_kv)] for layer in range(sizes.layers)]
    every = sorted(value for some in by_layer for value in some)
    steps = {round(high - low, 9) for low, high in itertools.pairwise(every)}
    assert (every[0], every[-1]) == (4.5, 14.5) and len(steps) == 1
    assert all(6 < sum(some) / len(some) < 13 for some in by_layer), "no layer skips all or nothing"


def test_kernels_of_attention_are_told_by_their_names() -> None:
    kernels = {"skim_sm90_prefill_bf16_d128": 3.0, "skim_sm90_decode_x": 1.0, "void flash_prefill_": 9.0, "gemm": 5.0}
    kernels["skim_sm90_prefill_other"] = 0.5
    assert attention_ms(kernels, "prefill") == 3.5 and attention_ms(kernels, "decode") == 1.0
    assert attention_ms({"gemm": 5.0}, "prefill") is None


class Clock:
    """Answers as a server of a known speed would."""

    def __init__(self, ttft: dict[str, float], tpot: dict[str, float]) -> None:
        self.ttft, self.tpot, self.order = ttft, tpot, list[str]()

    def run(self, server: Server, tokenizer: Path, requests: Path, count: int, concurrency: int) -> dict[str, Any]:
        name = server.contender.name
        self.order.append(name)
        slower = 1.0 + 0.1 * len(self.order)  # a machine that gets warm: ratios inside a round are all that counts
        self.order_count = count, concurrency
        steps = [self.tpot[name]] * 3
        return {"ttfts": [self.ttft[name] * slower] * count, "itls": [steps] * count, "output_lens": [4] * count}


class Counting(Server):
    def tiles(self) -> serve_servers.Tiles:
        seen = self.__dict__.setdefault("seen", [])
        seen.append(1)
        share = {PEER: None, DENSE: None, "ours 0.5": 0.5, "ours 0.9": 0.9}[self.contender.name]
        if share is None:
            return {}
        visited = 100.0 * len(seen)
        return {phase: {"visited": visited, "skipped": visited * share} for phase in ("prefill", "decode")}


def measured(attention: dict[str, Any], concurrency: int = 1) -> tuple[dict[str, Any], Clock]:
    ttft = {PEER: 1.0, DENSE: 1.0, "ours 0.5": 0.8, "ours 0.9": 0.5}
    tpot = {PEER: 0.010, DENSE: 0.011, "ours 0.5": 0.010, "ours 0.9": 0.005}
    clock, row = Clock(ttft, tpot), replace(ROW, concurrency=concurrency)
    servers = [Counting(one, "") for one in MADE]
    samples, tiles = serve_measure.rounds(row, servers, clock, Path("m"), Path("r"), settled=0)
    return serve_measure.case_of(row, samples, tiles, False, attention), clock


def test_servers_take_turns_and_rounds_are_compared() -> None:
    case, clock = measured({})
    names = [one.name for one in MADE]
    assert clock.order == [*names, *names, *names[::-1]], "a round of warm-up, one forwards, one backwards"
    assert clock.order_count == (ROW.requests, 1)
    speeds = {(one["of"], one["over"], one["metric"]): one["speed"]["median"] for one in case["comparisons"]}
    assert speeds["ours 0.9", PEER, "tpot"] == pytest.approx(2.0) and speeds[DENSE, PEER, "tpot"] == pytest.approx(
        10 / 11
    )
    assert 1.8 < speeds["ours 0.9", DENSE, "ttft"] < 2.2
    assert (PEER, DENSE, "ttft") not in speeds and (DENSE, DENSE, "ttft") not in speeds
    rows = {row["name"]: row for row in case["rows"]}
    assert rows["ours 0.5"]["sparsity"] == {"prefill": 0.5, "decode": 0.5} and rows[PEER]["sparsity"] == {}
    assert rows["ours 0.5"]["ttft"]["n"] == 4 and rows["ours 0.5"]["tpot"]["median"] == pytest.approx(10.0)
    goals = {goal["of"]: goal for goal in case["goals"]}
    assert set(goals) == {f"{DENSE} ttft", f"{DENSE} tpot"}
    assert not goals[f"{DENSE} tpot"]["passed"] and goals[f"{DENSE} tpot"]["value"] == pytest.approx(10 / 11)


def test_what_attention_allows_is_the_goal() -> None:
    assert serve_plan.allowed(0.5, 2.0) == pytest.approx(4 / 3) and serve_plan.allowed(0.0, 9.0) == 1.0
    case, _ = measured({DENSE: {"prefill": 1500.0}, "ours 0.9": {"prefill": 500.0}, "ours 0.5": {"prefill": None}})
    rows = {row["name"]: row for row in case["rows"]}
    bound = rows["ours 0.9"]["allowed"]
    share = 1500.0 / rows[DENSE]["ttft"]["median"]
    assert bound["share"] == pytest.approx(share) and bound["speedup"] == 3.0
    assert bound["speed"] == pytest.approx(1 / (1 - share + share / 3)) and "allowed" not in rows["ours 0.5"]
    [goal] = [goal for goal in case["goals"] if goal["of"] == "ours 0.9 ttft"]
    speed = next(
        one["speed"]["median"]
        for one in case["comparisons"]
        if (one["of"], one["over"], one["metric"]) == ("ours 0.9", DENSE, "ttft")
    )
    assert goal["value"] == pytest.approx(speed / bound["speed"]) and goal["bar"] == 0.95
    steps, _ = measured({DENSE: {"decode": 5.5}, "ours 0.9": {"decode": 1.1}}, concurrency=64)
    [goal] = [goal for goal in steps["goals"] if goal["of"].startswith("ours 0.9")]
    assert goal["of"] == "ours 0.9 tpot" and goal["value"] == pytest.approx(2.2 / (1 / (0.5 + 0.5 / 5)))


def test_results_are_shown(tmp_path: Path) -> None:
    case, _ = measured({DENSE: {"prefill": 1500.0}, "ours 0.9": {"prefill": 500.0}})
    text = serve_table.case_table(case)
    assert "planted 1k c1: 2 rounds of 2 requests, servers in turns" in text
    line = next(line for line in text.splitlines() if line.startswith("ours 0.9  "))
    assert "90.0%" in line and "2.000 (2.000-2.000)" in line and " 5.00 " in line
    assert "of ttft, and 3.000 times as fast, which allows" in text
    assert "goal: ours dense tpot over vllm 0.909, wanted 0.99: MISSED" in text
    assert "of 3 goals reached" in serve_table.summary([case])
    document = results.new_document("serve", ["--short"]) | {"gpu": "x", "versions": {"vllm": "1"}, "cases": [case]}
    path = tmp_path / "serve.json"
    results.save(document, path)
    assert results.load(path)["cases"][0]["case"] == "planted 1k c1"
    assert serve_table.draw(document, tmp_path / "serve.png") == str(tmp_path / "serve.png")
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")
