"""Benchmarks: result files, what must be reached, build figures, pictures, and the state of the machine."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from skimattn.codegen import sets

from bench import __main__ as command
from bench import accept, build, decode_work, machine, plot, prefill_work, results, statlog_work
from bench.command import Row
from bench.names import DENSE, RAGGED, REPEATED, UNIFORM

SPEED = {"n": 20, "min": 0.9, "max": 1.1, "p10": 0.95, "p90": 1.05}
TABLES: dict[str, Sequence[Row]] = {
    "rows": prefill_work.WORKS,
    "decode": decode_work.WORKS,
    "statlog": statlog_work.WORKS,
}
GOOD = {None: 1.0, 0.0: 0.97, 0.5: 1.25, 0.75: 1.5, 0.9: 1.7}


def comparison(of: str, over: str, speed: float) -> dict[str, Any]:
    return {"of": of, "over": over, "speed": {**SPEED, "median": speed}}


def case(mask: str, seqlen: int, planted: float | None) -> dict[str, Any]:
    pairs = [(DENSE, "fa4", 1.0), (DENSE, "cudnn", 1.1)] if planted is None else []
    for threshold in ("0", "1e-30") if planted is None else ("0.001",):
        pairs.append((f"ours skip@{threshold}", DENSE, GOOD[planted]))
    pairs.append((f"ours stat@{threshold}", f"ours skip@{threshold}", 0.99))
    shape = {"mask": mask, "seqlen": seqlen, "heads_q": 64, "heads_kv": 4, "head_dim": 128, "dtype": "bf16", "batch": 1}
    return {
        "case": f"{seqlen} {mask}",
        "input": "normal" if planted is None else "planted",
        "planted": planted,
        **shape,
        "counts": {"visited": 100, "skipped": int(100 * (planted or 0)), "sparsity": planted or 0.0},
        "comparisons": [comparison(*pair) for pair in pairs],
        "checks": [{"of": DENSE, "against": "float64", "value": 0.002, "limit": 0.01, "passed": True}],
    }


def ragged() -> dict[str, Any]:
    """Of the two batches one is uniform too."""
    document = results.new_document("ragged", [])
    checks = [{"of": RAGGED, "against": "float64", "value": 0.002, "limit": 0.01, "passed": True}]
    short = {"case": "short", "comparisons": [comparison(RAGGED, UNIFORM, 0.9), comparison(RAGGED, "fa3", 0.5)]}
    mixed = {"case": "mixed", "comparisons": [comparison(RAGGED, "fa3", 0.5)]}
    document |= {"cases": [{**short, "checks": checks}, {**mixed, "checks": checks}], "gpu": "NVIDIA H200"}
    return document


def with_goals(kind: str, works: Sequence[Row]) -> dict[str, Any]:
    """Every goal is just reached."""
    document = results.new_document(kind, [])
    checks = [{"of": DENSE, "against": "float64", "value": 0.002, "limit": 0.01, "passed": True}]
    document["cases"] = [
        {
            "case": work.label,
            "goals": [{"of": g.of, "over": g.over, "bar": g.bar, "value": g.bar, "passed": True} for g in work.goals],
            "checks": checks,
        }
        for work in works
    ]
    document["gpu"] = "NVIDIA H200"
    return copy.deepcopy(document)


def skip() -> dict[str, Any]:
    """A row with goals of its own, and one without."""
    document = with_goals("skip", prefill_work.WORKS[:2])
    goal = {"of": "ours skip@0.1", "over": DENSE, "bar": 1.3, "value": 1.3, "passed": True}
    document["cases"][0] |= {"case": "a model", "goals": [goal]}
    document["cases"][1]["goals"] = []
    return document


def language_model() -> list[dict[str, Any]]:
    """Two files of one model: the second has a better way, and lengths."""
    curves, rest = results.new_document("models", []), results.new_document("models", [])
    case = {"part": "curves", "phase": "prefill", "method": "layers", "calibration": {"seconds": 400.0}}
    curves["cases"] = [{**case, "at_goals": [{"added": 0.004}, {"added": None}]}, {"failed": "of decode"}]
    found = [{"added": 0.003}, {"added": 0.01}]
    rest["cases"] = [{**case, "method": "heads", "at_goals": found, "calibration": {"seconds": 300.0}}]
    for phase in ("prefill", "decode"):
        lengths = {"part": "lengths", "phase": phase}
        for way, worst in (("plain", 0.2), ("with a length term", 0.03)):
            rest["cases"].append({**lengths, "way": way, "worst": worst})
    for document in (curves, rest):
        document |= {"gpu": "NVIDIA H200", "model": "smollm2"}
    return copy.deepcopy([curves, rest])


def good() -> list[dict[str, Any]]:
    """Result files of all kinds in which everything is reached."""
    prefill, host = results.new_document("prefill", []), results.new_document("host", [])
    prefill["cases"] = [case(*shape, planted) for shape in accept.SHAPES for planted in GOOD]
    prefill["gpu"] = host["gpu"] = "NVIDIA H200"
    host["rows"] = [{"name": REPEATED, "us": {**SPEED, "median": 7.0}}]
    builds = [results.new_document("build", []) for _ in range(2)]
    for cores, document in enumerate(builds, start=1):
        document |= {"cores": cores, "kernels": 192, "set_size": 192, "median_seconds": 2.0, "max_peak_mb": 400}
        document |= {"wall_seconds": 500.0 / cores, "machine": "a processor"}
    documents = [prefill, host, *builds, ragged(), *(with_goals(*each) for each in TABLES.items())]
    documents += [*language_model(), skip()]
    for document in documents:
        document["commit"] = "0123"
        results.finish(document)
    return documents


def all_rows() -> list[accept.Row]:
    return accept.rows_of(good())


def test_everything_reached() -> None:
    rows = all_rows()
    goals = sum(len(work.goals) for works in TABLES.values() for work in works) + len(TABLES)
    assert len(rows) == 3 + 3 + 9 + 3 + 1 + 2 + 1 + 3 + 2 + 5 + goals and all(row.passed for row in rows)
    assert len({row.name for row in rows}) == len(rows)


def missed_goals() -> Iterator[tuple[str, Any]]:
    def slower(document: int, place: int, index: int) -> Any:
        def change(documents: list[dict[str, Any]]) -> None:
            goal = documents[document]["cases"][place]["goals"][index]
            goal["value"] = goal["bar"] - 1e-4

        return change

    for document, (kind, works) in enumerate(TABLES.items(), start=5):
        for place, work in enumerate(works):
            for index, goal in enumerate(work.goals):
                yield f"{kind}, {work.label}: {goal.of} over {goal.over}", slower(document, place, index)


def missed_by_a_model() -> Iterator[tuple[str, Any]]:
    def change(place: int, **values: Any) -> Any:
        return lambda documents: documents[-2]["cases"][place].update(values)

    def more(index: int, added: float) -> Any:
        return lambda documents: documents[-2]["cases"][0]["at_goals"][index].update(added=added)

    prefix = "models, smollm2: "
    yield f"{prefix}added perplexity where 66% of prefill is skipped", more(0, 0.0031)
    yield f"{prefix}added perplexity where 77% of prefill is skipped", more(1, 0.0101)
    yield f"{prefix}seconds to find these", change(0, calibration={"seconds": 301.0})
    yield f"{prefix}targets of prefill off by, at most", change(2, worst=0.031)
    yield f"{prefix}targets of decode off by, at most", change(4, worst=0.031)


def damages() -> Iterator[tuple[str, Any]]:
    """For every row: its name, and how to change the documents so that only it is missed."""

    def slower(mask: str, seqlen: int, planted: float | None, of: str, over: str, to: float) -> Any:
        def change(documents: list[dict[str, Any]]) -> None:
            found = accept.find_case(documents[0], mask, seqlen, planted)
            assert found is not None
            [item] = [item for item in found["comparisons"] if (item["of"], item["over"]) == (of, over)]
            item["speed"]["median"] = to

        return change

    def put(index: int, name: str, value: object) -> Any:
        return lambda documents: documents[index].__setitem__(name, value)

    for mask, seqlen in accept.SHAPES:
        size = f"{mask} {seqlen // 1024}k"
        yield f"dense {size} over fa4", slower(mask, seqlen, None, DENSE, "fa4", 0.9499)
        nothing = f"skip nothing {size} over dense"
        for threshold in ("0", "1e-30"):
            yield nothing, slower(mask, seqlen, None, f"ours skip@{threshold}", DENSE, 0.9599)
        yield nothing, slower(mask, seqlen, 0.0, "ours skip@0.001", DENSE, 0.9599)
        for share, bar in accept.PLANTED.items():
            name = f"planted {share:.0%} {size} over dense"
            yield name, slower(mask, seqlen, share, "ours skip@0.001", DENSE, bar - 1e-4)
            stat = slower(mask, seqlen, share, "ours stat@0.001", "ours skip@0.001", 0.9699)
            yield f"stat {size} over skip", stat
    yield "host us of a repeated launch", lambda documents: documents[1]["rows"][0]["us"].update(median=12.01)
    yield "compile seconds, one core, median", put(2, "median_seconds", 3.01)
    yield "compile peak MB, largest", put(2, "max_peak_mb", 954)
    yield "default set on 2 cores, seconds", put(3, "wall_seconds", 721.0)
    cases = lambda documents: documents[4]["cases"]  # noqa: E731
    yield "ragged over uniform", lambda documents: cases(documents)[0]["comparisons"][0]["speed"].update(median=0.769)
    yield "ragged outputs that are wrong", lambda documents: cases(documents)[1]["checks"][0].update(passed=False)
    for place, kind in enumerate(TABLES, start=5):
        wrong = lambda documents, at=place: documents[at]["cases"][-1]["checks"][0].update(passed=False)  # noqa: E731
        yield f"{kind} outputs and counts that are wrong", wrong
    yield from missed_goals()
    yield (
        "skip outputs and counts that are wrong",
        lambda documents: documents[-1]["cases"][1]["checks"][0].update(passed=False),
    )
    yield (
        f"skip, a model: ours skip@0.1 over {DENSE}",
        lambda documents: documents[-1]["cases"][0]["goals"][0].update(value=1.299),
    )
    yield from missed_by_a_model()
    wrong = lambda documents: documents[0]["cases"][4]["checks"][0].update(passed=False)  # noqa: E731
    yield "outputs and counts that are wrong", wrong


@pytest.mark.parametrize(("name", "change"), list(damages()))
def test_every_row_can_be_missed(name: str, change: Any) -> None:
    documents = good()
    change(documents)
    assert [row.name for row in accept.rows_of(documents) if not row.passed] == [name]


def test_every_row_was_made_to_miss() -> None:
    assert {name for name, _ in damages()} == {row.name for row in all_rows()}


def test_what_was_not_measured_is_a_miss() -> None:
    assert not any(row.passed for row in accept.rows_of([]))
    assert accept.rows_of([], partial=True) == []
    prefill, host, single, pair, batches, *tables = good()
    assert len(accept.rows_of([host], partial=True)) == 1
    del prefill["cases"][0]  # N(0,1), causal, 16k
    documents = [prefill, host, single, pair, batches, *tables]
    missed = [row.name for row in accept.rows_of(documents) if not row.passed]
    names = ["dense causal 16k over fa4", "skip nothing causal 16k over dense", "stat causal 16k over skip"]
    assert missed == names
    sampled = {**pair, "kernels": 20}  # a part of the set says nothing about the whole
    rows = accept.rows_of([host, single, sampled], partial=True)
    assert [row.name for row in rows if not row.passed] == ["default set on 2 cores, seconds"]


@pytest.mark.parametrize("field", ["heads_q", "heads_kv", "head_dim", "dtype"])
def test_other_shapes_do_not_count(field: str) -> None:
    documents = good()
    for item in documents[0]["cases"]:
        item[field] = "fp16" if field == "dtype" else 2
    assert sum(row.value is None for row in accept.rows_of(documents)) == 18


def test_nan_is_a_miss() -> None:
    nan = float("nan")
    assert not accept.Row("x", 1.0, nan).passed and not accept.Row("x", 1.0, nan, at_least=False).passed
    assert accept.worst([("a", 2.0), ("b", nan)]) == (None, "not measured: b")
    assert accept.worst([("a", 2.0), ("b", 1.0)]) == (1.0, "b")


def test_figures_of_two_runs_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="one file"):
        accept.rows_of([good()[0], good()[0]])
    cut_off = {**good()[0], "finished": None}
    with pytest.raises(ValueError, match="cut off"):
        accept.rows_of([cut_off])


def test_accept_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = good()
    files = [str(tmp_path / f"{index}.json") for index in range(len(documents))]
    for document, file in zip(documents, files, strict=True):
        results.save(document, Path(file))
    assert command.main(["accept", *files]) == 0
    assert f"{len(all_rows())} of {len(all_rows())} reached" in capsys.readouterr().out
    assert command.main(["accept", files[0]]) == 1
    assert "not measured" in capsys.readouterr().out
    assert command.main(["accept", "--partial", files[0]]) == 0
    assert command.main(["accept", str(tmp_path / "none.json")]) == 2
    assert command.main(["nothing"]) == 2 and command.main(["--help"]) == 0


def test_result_files_are_checked_and_small(tmp_path: Path) -> None:
    path = results.place(tmp_path, good()[0], "NVIDIA H200")
    assert path.name.startswith("prefill-nvidia-h200-20") and path.suffix == ".json"
    document = good()[0]
    results.save(document, path)
    assert results.load(path) == document and [item.name for item in tmp_path.iterdir()] == [path.name]
    assert path.read_text().count('\n{"case"') == len(document["cases"])  # a line per case, for diffs
    for text, reason in (("{", "not JSON"), ("[]", "result file"), ('{"kind":"host","format":0}', "format")):
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            results.load(path)


def test_build_figures_from_a_log() -> None:
    specs = sets.specs("default")[:3]
    kernels = {spec.name: {"seconds": 1.0 + index, "peak_mb": 300 + index} for index, spec in enumerate(specs)}
    kernels["something else"] = {"seconds": 99.0, "peak_mb": 9999}
    figures = build.summarise(kernels, sets.specs("default"))
    assert (figures["kernels"], figures["median_seconds"], figures["max_seconds"]) == (3, 2.0, 3.0)
    assert (figures["max_peak_mb"], figures["sum_seconds"]) == (302, 6.0)
    assert next(iter(figures["slowest"])) == specs[2].name
    with pytest.raises(ValueError, match="got none"):
        build.summarise({}, specs)
    assert build.sample(range(192), 4) == [0, 48, 96, 144]  # type: ignore[arg-type, comparison-overlap]
    assert build.sample(specs, None) == specs == build.sample(specs, 9)


def test_build_command_compiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--compile", "--sample", "1", "--out", str(tmp_path)]) == 0
    [path] = tmp_path.iterdir()
    document = results.load(path)
    assert document["kernels"] == 1 and document["cores"] == 1 and document["finished"]
    assert 0 < document["median_seconds"] < document["wall_seconds"] and document["max_peak_mb"] > 50
    assert "median_seconds" in capsys.readouterr().out
    assert build.main(["--log", str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 1
    assert build.main(["--compile", "--cores", "100000", "--out", str(tmp_path)]) == 1


@pytest.mark.parametrize("name", ["prefill", "rows", "decode", "host"])
def test_without_a_gpu_nothing_is_measured(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert command.main([name]) == 1
    assert "expected an NVIDIA GPU" in capsys.readouterr().err


def test_lines_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = good()[0]
    for item in document["cases"]:
        if item["planted"] is not None:
            item["comparisons"].append(comparison("fmha_v2 skip@0.001", "fmha_v2", 1.2))
    lines = plot.speedups(document)
    assert set(lines) == {f"{who} {m} {s // 1024}k" for who in ("skimattn", "fmha_v2") for m, s in accept.SHAPES}
    assert [point[:2] for point in lines["skimattn full 16k"]] == [(0.0, 0.97), (0.5, 1.25), (0.75, 1.5), (0.9, 1.7)]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "matplotlib is not installed" in plot.draw(document, tmp_path / "x.png")
    assert "nothing with planted sparsity" in plot.draw({**document, "cases": []}, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_state_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    state = machine.parse_smi("NVIDIA H200, 580.159.04, 1980, 3201, 655.20, 700.00, [N/A]\n")
    assert state["gpu"] == "NVIDIA H200" and state["driver"] == "580.159.04" and state["sm_clock_mhz"] == 1980.0
    assert state["power_w"] == 655.2 and state["temperature_c"] == "[N/A]"
    with pytest.raises(ValueError, match="expected 7 values"):
        machine.parse_smi("No devices were found")
    monkeypatch.setenv(machine.COMMIT_VARIABLE, "abc")
    assert machine.commit() == "abc"
    if not torch.cuda.is_available():
        assert "unknown" in machine.gpu_state()
    assert json.dumps(copy.deepcopy(machine.versions())) and machine.versions()["torch"]
