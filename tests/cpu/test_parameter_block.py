"""The parameter block as the host lays it out."""

from __future__ import annotations

import ctypes

from skimattn.codegen import parameter_block
from skimattn.codegen.parameter_block import ALIGNMENT, FIELDS, OFFSETS, SIZE, ParamsBlock, aligned_block


def test_ctypes_agrees_with_the_table() -> None:
    for field in FIELDS:
        member = getattr(ParamsBlock, field.name)
        assert (member.offset, member.size) == (OFFSETS[field.name], field.size), field.name
    assert ctypes.sizeof(ParamsBlock) == SIZE


def test_members_are_aligned_and_adjacent() -> None:
    end = 0
    for field in FIELDS:
        assert OFFSETS[field.name] == end
        assert end % min(field.size, ALIGNMENT) == 0, field.name
        end += field.size
    assert SIZE % ALIGNMENT == 0 and 0 <= SIZE - end < ALIGNMENT


def test_it_fits_into_kernel_arguments() -> None:
    assert SIZE <= 4096  # bytes that every driver accepts as kernel arguments


def test_names_are_unique_and_documented() -> None:
    names = [field.name for field in FIELDS]
    assert len(set(names)) == len(names)
    assert all(field.doc for field in FIELDS)


def test_blocks_start_at_the_alignment() -> None:
    for _ in range(20):
        block, owner = aligned_block()
        assert ctypes.addressof(block) % ALIGNMENT == 0
        assert bytes(block) == bytes(SIZE)
        block.batch = 7
        assert owner is not None and block.batch == 7


def test_tensor_maps_stand_first() -> None:
    maps = [field.name for field in FIELDS if field.kind == "tensor_map"]
    assert [OFFSETS[name] for name in maps] == [i * parameter_block.TENSOR_MAP_BYTES for i in range(len(maps))]
