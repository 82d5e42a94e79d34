"""The one table of kernel features: names, legal values, and bits of the packed key.

Everything that names a feature value (specs, metadata, dispatch keys, the C++ enums rendered into
``features.cuh``) reads this table. Values are only ever appended, so keys stay stable; ``width``
leaves room to grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = str | int | bool


@dataclass(frozen=True)
class Feature:
    """One field of a kernel's key: ``values[i]`` is stored as the number ``i`` in ``width`` bits."""

    name: str
    values: tuple[Value, ...]
    width: int

    def encode(self, value: object) -> int:
        """Return the code of ``value``; ``ValueError`` names the field and what it accepts."""
        for code, known in enumerate(self.values):
            if type(known) is type(value) and known == value:
                return code
        raise ValueError(f"{self.name}: expected one of {list(self.values)} (got {value!r})")


FEATURES: tuple[Feature, ...] = (
    Feature("arch", ("sm90", "sm100"), 4),
    Feature("phase", ("prefill", "decode", "combine", "mla", "transpose"), 4),
    Feature("dtype", ("bf16", "fp16", "e4m3"), 4),
    Feature("out_dtype", ("bf16", "fp16"), 4),
    Feature("head_dim", (64, 128, 192, 256, 512, 576, 96, 80), 5),
    Feature("head_dim_v", (64, 128, 192, 256, 512, 96, 80), 5),
    Feature("mask", ("full", "causal", "window", "chunked", "custom"), 5),
    Feature("paged", (False, True), 2),
    Feature("skip", ("dense", "skip", "stat"), 3),
    Feature("softcap", (False, True), 2),
    Feature("alibi", (False, True), 2),
    Feature("kv_dtype", ("same", "e4m3"), 3),  # "same": as dtype, which is q's
)
BY_NAME: Mapping[str, Feature] = {feature.name: feature for feature in FEATURES}
KEY_BITS = sum(feature.width for feature in FEATURES)


def check_table(features: tuple[Feature, ...]) -> None:
    """Raise ``OverflowError`` if some feature has more values than its bits can hold."""
    for feature in features:
        if len(feature.values) > 1 << feature.width:
            raise OverflowError(f"{feature.name}: {len(feature.values)} values do not fit {feature.width} bits")


check_table(FEATURES)


def pack(values: Mapping[str, object]) -> int:
    """Pack one value for every feature into an integer key (first feature in the lowest bits)."""
    key, shift = 0, 0
    for feature in FEATURES:
        if feature.name not in values:
            raise ValueError(f"{feature.name}: missing, a key needs every feature")
        key |= feature.encode(values[feature.name]) << shift
        shift += feature.width
    return key


def unpack(key: int) -> dict[str, Value]:
    """The inverse of :func:`pack`; ``ValueError`` for a key that no values pack to."""
    if not 0 <= key < 1 << KEY_BITS:
        raise ValueError(f"key: expected {KEY_BITS} bits (got {key:#x})")
    values: dict[str, Value] = {}
    for feature in FEATURES:
        code = key & ((1 << feature.width) - 1)
        if code >= len(feature.values):
            raise ValueError(f"{feature.name}: code {code} names no value")
        values[feature.name] = feature.values[code]
        key >>= feature.width
    return values
