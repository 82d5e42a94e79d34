"""The feature table and the keys packed from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimattn.codegen.features import FEATURES, KEY_BITS, Feature, check_table, pack, unpack
from skimattn.codegen.matrix import all_specs

COMBINATIONS = st.fixed_dictionaries({feature.name: st.sampled_from(feature.values) for feature in FEATURES})


def test_keys_are_injective_over_the_full_matrix() -> None:
    specs = all_specs()
    assert len({spec.key for spec in specs}) == len(specs)


@given(COMBINATIONS)
def test_pack_and_unpack_are_inverse(values: dict[str, object]) -> None:
    assert unpack(pack(values)) == values


@given(COMBINATIONS, COMBINATIONS)
def test_different_values_have_different_keys(one: dict[str, object], other: dict[str, object]) -> None:
    assert (pack(one) == pack(other)) == (one == other)


def test_there_is_room_to_grow() -> None:
    assert KEY_BITS <= 64
    assert all(len(feature.values) * 2 <= 1 << feature.width for feature in FEATURES)


def test_too_many_values_overflow() -> None:
    with pytest.raises(OverflowError, match="mask: 3 values do not fit 1 bits"):
        check_table((Feature("mask", ("a", "b", "c"), 1),))


def test_values_of_another_type_are_no_values() -> None:
    values = unpack(all_specs()[0].key)
    for name, wrong in (("paged", 0), ("head_dim", "64"), ("head_dim", True), ("mask", "Full")):
        with pytest.raises(ValueError, match=f"{name}: expected one of"):
            pack({**values, name: wrong})


def test_a_key_needs_every_feature() -> None:
    with pytest.raises(ValueError, match="arch: missing"):
        pack({})


@pytest.mark.parametrize("key", [-1, 1 << KEY_BITS])
def test_keys_outside_the_bits_are_refused(key: int) -> None:
    with pytest.raises(ValueError, match=f"key: expected {KEY_BITS} bits"):
        unpack(key)


def test_codes_without_a_value_are_refused() -> None:
    with pytest.raises(ValueError, match="arch: code 15 names no value"):
        unpack(15)


def test_a_spec_with_an_unknown_value_has_no_key() -> None:
    with pytest.raises(ValueError, match="dtype: expected one of"):
        _ = replace(all_specs()[0], dtype="fp8").key
