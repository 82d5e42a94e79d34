"""metadata.json: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from skimattn.codegen import metadata, parameter_block
from skimattn.codegen.errors import BuildError, MetadataError
from skimattn.codegen.metadata import Kernel
from skimattn.codegen.parameter_block import Field
from skimattn.codegen.report import Report
from skimattn.codegen.sets import specs

CUBIN = b"not really a cubin" * 10


REPORT = Report("key", "source", hashlib.sha256(CUBIN).hexdigest(), "nvrtc 13.0.88", 168, 0, 1.0, 200)


def make(count: int = 3) -> tuple[Kernel, ...]:
    return tuple(metadata.kernel_of(spec, REPORT, f"sm90/{spec.name}.cubin") for spec in specs("default")[:count])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "metadata.json"
    file.write_text(metadata.dump(make()))
    return file


def test_round_trip(path: Path) -> None:
    assert metadata.load(path) == make()
    assert [kernel.spec for kernel in metadata.load(path)] == list(specs("default")[:3])


def test_bytes_do_not_depend_on_the_order_of_building() -> None:
    assert metadata.dump(make()) == metadata.dump(reversed(make()))


def test_an_absent_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        metadata.load(tmp_path / "metadata.json")


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes().rstrip()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(MetadataError, match=r"metadata\.json: not JSON, truncated"):
            metadata.load(path)


def test_every_flipped_digit_is_refused(path: Path) -> None:
    text = path.read_text()
    start = text.index('"kernels":')
    for at in [i for i in range(start, len(text)) if text[i].isdigit()][::7]:
        path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        with pytest.raises(MetadataError, match=r"metadata\.json"):
            metadata.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document.update(package="other"), "not a skimattn metadata file"),
        (lambda document: document.update(format=2), "format: expected 4 \\(got 2\\)"),
        (lambda document: document.update(params_layout_sha256="0"), "params_layout_sha256: expected"),
        (lambda document: document.update(kernels={}), "kernels: expected a list \\(got dict\\)"),
        (lambda document: document.pop("kernels"), "kernels: expected a list"),
        (lambda document: document["kernels"].pop(), "kernels_sha256 does not match"),
    ],
)
def test_foreign_documents_are_refused(path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(MetadataError, match=words):
        metadata.load(path)


def test_other_words_about_a_parameter_leave_folders_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is no layout: it is a comment of the sources, so kernels are stale at most."""
    reworded = tuple(replace(field, doc=f"{field.doc}, in other words") for field in parameter_block.FIELDS)
    monkeypatch.setattr(parameter_block, "FIELDS", reworded)
    assert metadata.load(path) == make()


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: (*fields[:-1], replace(fields[-1], name="another")),
        lambda fields: (*fields[:-1], replace(fields[-1], kind="float32")),  # of the same size
        lambda fields: (*fields[:-1], replace(fields[-1], ctype="float")),
        lambda fields: (*fields[:-2], fields[-1], fields[-2]),
        lambda fields: fields[:-1],
    ],
    ids=["name", "kind", "type", "order", "fewer"],
)
def test_another_layout_of_the_parameters_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[tuple[Field, ...]], tuple[Field, ...]]
) -> None:
    monkeypatch.setattr(parameter_block, "FIELDS", change(parameter_block.FIELDS))
    told = r"params_layout_sha256: expected \w+ \(got \w+\); run python build\.py again"
    with pytest.raises(MetadataError, match=told):
        metadata.load(path)


def test_other_json_is_refused(path: Path) -> None:
    path.write_text("[1, 2]")
    with pytest.raises(MetadataError, match="not a skimattn metadata file"):
        metadata.load(path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("registers", "168", "registers: expected int \\(got '168'\\)"),
        ("paged", 0, "paged: expected bool"),
        ("mask", "banded", "mask: expected one of"),
        ("params_size", 64, "params_size: expected \\d+ \\(got 64\\)"),
        ("group_rows", 128, "group_rows: expected 64 \\(got 128\\)"),
        ("tmem_columns", 512, "tmem_columns: expected 0 \\(got 512\\)"),
        ("ctas_per_sm", 2, "ctas_per_sm: expected 1 \\(got 2\\)"),
        ("verified", None, "verified: expected str \\(got None\\)"),
        ("tile_n", 96, "tile_n: expected \\d+ \\(got 96\\)"),
        ("smem_bytes", 1, "smem_bytes: expected"),
        ("key", 1, "key: expected"),
        ("name", "skim_other", "name: expected"),
        ("entry", "main", "entry: expected"),
        ("cubin", "/etc/passwd", "cubin: expected a path below"),
        ("cubin", "../other.cubin", "cubin: expected a path below"),
    ],
)
def test_rows_must_fit_this_package(field: str, value: object, words: str) -> None:
    row = {**vars(make()[0]), field: value}
    with pytest.raises(MetadataError, match=f"here: kernel .*{words}"):
        metadata.parse_kernel(row, "here")


def test_what_is_known_of_a_kernel_is_said_as_of_today() -> None:
    """A folder that was built when less was known is as good as before."""
    (kernel, *_) = make()
    assert metadata.parse_kernel({**vars(kernel), "verified": "not run on a GPU yet"}, "here") == kernel


def test_rows_have_exactly_the_known_fields() -> None:
    row = dict(vars(make()[0]))
    del row["stages"]
    with pytest.raises(MetadataError, match="missing or unknown fields colour, stages"):
        metadata.parse_kernel({**row, "colour": "red"}, "here")


def test_rows_must_be_objects() -> None:
    with pytest.raises(MetadataError, match="kernel: expected an object \\(got list\\)"):
        metadata.parse_kernel([], "here")  # type: ignore[arg-type]


def test_cubins_are_checked(tmp_path: Path) -> None:
    kernel = make()[0]
    file = tmp_path / kernel.cubin
    with pytest.raises(MetadataError, match=f"{kernel.name}: cubin .* is missing"):
        metadata.read_cubin(kernel, tmp_path)
    file.parent.mkdir()
    for damaged in (CUBIN[:-1], CUBIN[:5] + b"?" + CUBIN[6:], b"another kernel", b""):
        file.write_bytes(damaged)
        with pytest.raises(MetadataError, match=f"{kernel.name}: cubin .*truncated, damaged or another kernel's"):
            metadata.read_cubin(kernel, tmp_path)
    file.write_bytes(CUBIN)
    assert metadata.read_cubin(kernel, tmp_path) == CUBIN


def test_listing_has_the_promised_fields() -> None:
    kernel = make()[0]
    promised = set(vars(kernel.spec)) | {"name", "key", "tile", "group_rows", "order", "threads", "registers"}
    promised |= {"spill_bytes", "smem_bytes", "tmem_columns", "verified", "cubin_sha256", "built", "stale"}
    built, unbuilt = metadata.listing(kernel.spec, kernel), metadata.listing(kernel.spec, None)
    assert promised <= built.keys() & unbuilt.keys()
    assert built["tile"] == [kernel.tile_m, kernel.tile_n]
    assert (built["built"], unbuilt["built"]) == (True, False)
    stale = metadata.listing(kernel.spec, kernel, stale=True)
    assert [(row["built"], row["stale"]) for row in (built, unbuilt, stale)] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert unbuilt["registers"] is None and unbuilt["cubin_sha256"] is None
    assert unbuilt["tile"] == built["tile"]


def test_rows_say_how_far_their_kind_was_tried() -> None:
    (hopper,) = specs("smoke", {"mask": ["chunked"]}, ["sm90"])
    (blackwell,) = specs("smoke", {"mask": ["chunked"]}, ["sm100"])
    rows = [metadata.kernel_of(spec, REPORT, "x.cubin") for spec in (hopper, blackwell)]
    assert [row.verified for row in rows] == [
        "run on an H200 and an H100",
        "compiles; verified on the emulator; not run on Blackwell",
    ]
    assert [(row.group_rows, row.tmem_columns) for row in rows] == [(64, 0), (128, 512)]
    assert all(f'"verified": "{row.verified}"' in metadata.dump(rows) for row in rows)


def test_rows_say_how_many_ctas_share_a_multiprocessor() -> None:
    """Which grids are made by, and without which kernels would run half as fast."""
    wanted = {("prefill", 64): 1, ("decode", 64): 2, ("decode", 128): 2, ("decode", 256): 1, ("combine", 256): 2}
    for (phase, dim), ctas in wanted.items():
        spec = specs("default", {"phase": [phase], "head_dim": [dim]}, ["sm90"])[0]
        assert metadata.kernel_of(spec, REPORT, "x.cubin").ctas_per_sm == ctas, (phase, dim)
        assert metadata.listing(spec, None)["ctas_per_sm"] == ctas


def test_refusals_are_build_errors() -> None:
    assert issubclass(MetadataError, BuildError)
    assert replace(make()[0]) == make()[0]
