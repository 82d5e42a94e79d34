"""Which kernels exist: the product of all feature values, and rules that reject."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import NamedTuple

from .features import BY_NAME, FEATURES, Feature, Value
from .spec import KernelSpec

# (head_dim, head_dim_v) of the kernels of each phase; not all architectures and types have all of them, see dims_of
HEAD_DIMS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "prefill": ((64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)),
    "decode": ((64, 64), (128, 128), (256, 256)),
    "combine": ((64, 64), (128, 128), (256, 256), (512, 512)),
    "mla": ((576, 512),),
    "transpose": ((64, 64), (128, 128), (256, 256)),
}
_MLA_DIMS = HEAD_DIMS["mla"][0]
HOPPER_DIMS = ((80, 80), (96, 96), (192, 192))  # of SM90's prefill of 16 bits alone
FP8 = ("e4m3",)  # dtypes of 8 bits, whose output is 16-bit
HELPERS = ("combine", "transpose")  # phases whose kernels attend to nothing, but make ready or finish for others


class Rule(NamedTuple):
    """A kernel for which ``rejects`` holds does not exist, because of ``reason``."""

    name: str
    rejects: Callable[[KernelSpec], bool]
    reason: str


_HEAD_DIMS = Rule(
    "head-dims",
    lambda spec: (spec.head_dim, spec.head_dim_v) not in HEAD_DIMS[spec.phase],
    "kernels exist for (head_dim, head_dim_v) in "
    + "; ".join(f"{', '.join(map(str, dims))} of {phase}" for phase, dims in HEAD_DIMS.items())
    + "; a call with smaller dims (multiples of 16 bytes) runs on the next larger kernel through TMA zero fill",
)


@cache
def dims_of(arch: str, phase: str, dtype: str) -> tuple[tuple[int, int], ...]:
    """(head_dim, head_dim_v) of the phase's kernels on an architecture, for queries of a type."""
    lacks_some = arch != "sm90" or dtype in FP8
    return tuple(dims for dims in HEAD_DIMS[phase] if not (lacks_some and dims in HOPPER_DIMS))


def _has_option(spec: KernelSpec) -> bool:
    return spec.paged or spec.softcap or spec.alibi


RULES = (
    Rule(
        "out-dtype",
        lambda spec: spec.dtype not in FP8 and spec.out_dtype != spec.dtype,
        "16-bit kernels write the type they read; convert the output after the call",
    ),
    Rule(
        "kv-dtype-twice",
        lambda spec: spec.kv_dtype == spec.dtype,
        "keys and values of q's type are kv_dtype=same",
    ),
    Rule(
        "kv-dtype-arch",
        lambda spec: spec.kv_dtype != "same" and spec.arch == "sm100",
        "SM100 kernels convert nothing: they multiply keys and values in the type that they and the queries have",
    ),
    Rule(
        "kv-dtype-phase",
        lambda spec: spec.kv_dtype != "same" and spec.phase in ("prefill", "transpose"),
        "only decode reads keys and values of another type than q's, as it converts them; prefill would convert each "
        "of them once for every tile of queries",
    ),
    Rule(
        "combine-dtype",
        lambda spec: spec.phase == "combine" and (spec.kv_dtype != "same" or spec.dtype != spec.out_dtype),
        "partial results are float32, whatever they were computed from; a combine kernel's types are its output's",
    ),
    Rule(
        "mla-arch",
        lambda spec: spec.arch != "sm90" and (spec.phase == "mla" or spec.head_dim_v == _MLA_DIMS[1]),
        "MLA decode exists on SM90 alone",
    ),
    Rule(
        "mla-dtype",
        lambda spec: spec.phase == "mla" and (spec.dtype in FP8 or spec.kv_dtype != "same"),
        "MLA decode reads nothing but 16 bits",
    ),
    Rule(
        "mla-mask",
        lambda spec: spec.phase == "mla" and spec.mask not in ("full", "causal"),
        "MLA decode has no other masks than full and causal",
    ),
    Rule("mla-alibi", lambda spec: spec.phase == "mla" and spec.alibi, "MLA decode has no alibi"),
    Rule(
        "combine-options",
        lambda spec: spec.phase == "combine" and (spec.mask != "full" or spec.skip != "dense" or _has_option(spec)),
        "partial results are merged in one way, whatever mask and options they were computed with",
    ),
    Rule(
        "transpose-dtype",
        lambda spec: spec.phase == "transpose" and (spec.arch != "sm90" or spec.dtype not in FP8),
        "only 8-bit values of SM90's prefill are transposed before they are multiplied",
    ),
    Rule(
        "transpose-options",
        lambda spec: (
            spec.phase == "transpose"
            and (spec.mask != "full" or spec.skip != "dense" or spec.softcap or spec.alibi or spec.out_dtype != "bf16")
        ),
        "values are transposed in one way, whatever mask, options and output go with them: bf16 stands for all outputs",
    ),
    _HEAD_DIMS,
    Rule(
        "head-dims-hopper",
        lambda spec: (spec.head_dim, spec.head_dim_v) not in dims_of(spec.arch, spec.phase, spec.dtype),
        "only SM90's prefill of 16 bits has kernels of "
        + ", ".join(map(str, HOPPER_DIMS))
        + "; elsewhere such calls run on the next larger kernel",
    ),
)


@dataclass(frozen=True)
class Accepted:
    """The matrix holds this kernel."""

    spec: KernelSpec


@dataclass(frozen=True)
class Rejected:
    """The matrix does not hold it: the rule that says so, and why."""

    rule: str
    reason: str


def judge(spec: KernelSpec) -> Accepted | Rejected:
    """Apply the rules to one spec; the first rule that rejects is named."""
    for rule in RULES:
        if rule.rejects(spec):
            return Rejected(rule.name, rule.reason)
    return Accepted(spec)


def head_dims(arch: str, phase: str, dtype: str, head_dim: int, head_dim_v: int) -> tuple[int, int] | None:
    """The (head_dim, head_dim_v) of the kernel of :func:`dims_of` with the fewest columns that holds these, or None.

    TMA zero-fills the rest; but MLA's columns are what they are, or a call of fewer would be taken for one of it.
    """
    if phase == "mla":
        return next((dims for dims in HEAD_DIMS[phase] if dims == (head_dim, head_dim_v)), None)
    fitting = [dims for dims in dims_of(arch, phase, dtype) if dims[0] >= head_dim and dims[1] >= head_dim_v]
    return min(fitting, key=sum, default=None)


def complete(values: Mapping[str, object]) -> dict[str, object]:
    """Fill in what ``values`` leaves open: a bf16, head_dim 128, unmasked, dense SM90 prefill kernel.

    e4m3 means bf16 output.
    """
    is_fp8 = values.get("dtype") in FP8
    latent = values.get("phase") == "mla" or values.get("head_dim") == _MLA_DIMS[0]
    full: dict[str, object] = {
        "arch": "sm90",
        "phase": "mla" if latent else "prefill",
        "dtype": "bf16",
        "head_dim": _MLA_DIMS[0] if latent else 128,
        "mask": "full",
        "paged": False,
        "skip": "dense",
        "softcap": False,
        "alibi": False,
        "kv_dtype": "same",
        **values,
    }
    full.setdefault("out_dtype", "bf16" if is_fp8 else full["dtype"])
    of_its_own: dict[object, int] = dict(reversed(HEAD_DIMS["prefill"] + HEAD_DIMS["mla"]))  # the smaller v first
    full.setdefault("head_dim_v", of_its_own.get(full["head_dim"], full["head_dim"]))
    return full


def judge_values(values: Mapping[str, object]) -> Accepted | Rejected:
    """Say whether the kernel that ``values`` describe exists, and if not, which rule rejects it and why.

    Args:
        values: feature names to values, typed or spelled as on the command line; what is left out
            takes the value that :func:`complete` names.
    Raises:
        ValueError: a name that is no feature.
    """
    full = complete({name: _typed(feature_of(name), value) for name, value in values.items()})
    for feature in FEATURES:
        if not _is_value(feature, full[feature.name]):
            return Rejected(f"{feature.name}-values", _unknown_value(feature, full[feature.name]))
    return judge(KernelSpec(**full))  # type: ignore[arg-type]


def _is_value(feature: Feature, value: object) -> bool:
    return any(type(known) is type(value) and known == value for known in feature.values)


def _unknown_value(feature: Feature, value: object) -> str:
    if feature.name == "arch":
        return f"{value} has no kernel specs yet (specs exist for {', '.join(map(str, feature.values))})"
    if feature.name in ("head_dim", "head_dim_v"):
        return f"{feature.name}={value} has no kernel of its own: {_HEAD_DIMS.reason}"
    return f"{feature.name}: expected one of {_spelled(feature)} (got {value!r})"


def feature_of(name: str) -> Feature:
    """The feature called ``name``; ``ValueError`` lists those that exist."""
    if name not in BY_NAME:
        raise ValueError(f"unknown field {name!r} (expected one of {', '.join(BY_NAME)})")
    return BY_NAME[name]


def parse_value(feature: Feature, text: str) -> Value:
    """The value that ``text`` spells, such as ``128``, ``bf16`` or ``true``; ``ValueError`` lists the legal ones."""
    value = _typed(feature, text)
    for known in feature.values:
        if type(known) is type(value) and known == value:
            return known
    raise ValueError(f"{feature.name}: expected one of {_spelled(feature)} (got {text!r})")


def _typed(feature: Feature, value: object) -> object:
    """``value`` in the feature's type where it spells one; other things stay as they are, to be refused by name."""
    if not isinstance(value, str):
        return value
    kind = type(feature.values[0])
    if kind is bool:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(value.lower(), value)
    if kind is int:
        return int(value) if value.isdecimal() else value
    return value


def _spelled(feature: Feature) -> str:
    return ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in feature.values)


def combine_spec(decode: KernelSpec) -> KernelSpec:
    """The kernel that merges what a decode kernel left in the workspace."""
    return replace(
        decode,
        phase="combine",
        dtype=decode.out_dtype,
        head_dim=decode.head_dim_v,
        mask="full",
        paged=False,
        skip="dense",
        softcap=False,
        alibi=False,
        kv_dtype="same",
    )


def transpose_spec(prefill: KernelSpec) -> KernelSpec | None:
    """The kernel that transposes V for a prefill kernel; None for those that read it as it is."""
    if prefill.arch != "sm90" or prefill.dtype not in FP8:
        return None
    return replace(
        prefill,
        phase="transpose",
        out_dtype="bf16",
        head_dim=prefill.head_dim_v,
        mask="full",
        skip="dense",
        softcap=False,
        alibi=False,
    )


@cache
def all_specs() -> tuple[KernelSpec, ...]:
    """Every accepted kernel, in the order of the feature table."""
    return tuple(spec for spec in _candidates() if isinstance(judge(spec), Accepted))


def _candidates() -> Iterator[KernelSpec]:
    """All combinations of values; of head dims, most of which do not exist, those of the phase."""
    names = [feature.name for feature in FEATURES]
    phase, dim, dim_v = (names.index(name) for name in ("phase", "head_dim", "head_dim_v"))
    before, after = ([feature.values for feature in part] for part in (FEATURES[:dim], FEATURES[dim_v + 1 :]))
    order = [BY_NAME[name].values.index for name in ("head_dim", "head_dim_v")]
    rest = tuple(product(*after))
    for first in product(*before):
        for dims in sorted(
            HEAD_DIMS[str(first[phase])], key=lambda pair: [at(x) for at, x in zip(order, pair, strict=True)]
        ):
            for last in rest:
                values = (*first, *dims, *last)
                yield KernelSpec(*values)  # type: ignore[arg-type]
