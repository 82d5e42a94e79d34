"""The named sets of kernels: what ``smoke``, ``default`` and ``full`` hold, and how they are narrowed down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from . import places
from .features import BY_NAME, Value
from .matrix import FP8, HELPERS, HOPPER_DIMS, all_specs, combine_spec, feature_of, transpose_spec
from .spec import KernelSpec

SETS = ("smoke", "default", "full")


def in_default(spec: KernelSpec) -> bool:
    """What LLM and diffusion inference calls.

    No softcap, no alibi, paged caches only with causal kinds of masks (but MLA's with all), bf16 output of 8-bit input,
    bf16 queries over 8-bit caches. Of 8-bit queries on SM90 no decode, which converts them too, and of prefill three
    masks without counts, paged causal alone. Of the dims that SM90 alone has bf16, full and causal, without counts,
    paged causal alone. Of fp16 no counts under a custom mask.
    """
    paged_with = ("causal", "window", "chunked")
    has_8_bits = spec.keys_dtype in FP8
    is_common = spec.out_dtype == ("bf16" if has_8_bits else spec.dtype) and not spec.softcap and not spec.alibi
    if spec.dtype in FP8 and spec.arch == "sm90":
        of_prefill = is_common and _is_frequent(spec, ("full", "causal", "window"))
        return of_prefill if spec.phase == "prefill" else spec.phase == "transpose"
    if (spec.head_dim, spec.head_dim_v) in HOPPER_DIMS:
        return is_common and spec.dtype == "bf16" and _is_frequent(spec, ("full", "causal"))
    if (spec.dtype, spec.mask, spec.skip) == ("fp16", "custom", "stat"):
        return False
    return is_common and (not spec.paged or spec.mask in paged_with or spec.phase == "mla")


def _is_frequent(spec: KernelSpec, masks: tuple[str, ...]) -> bool:
    """Of kernels that are rare by their type or head_dim: those without counts that have these masks, or pages."""
    return spec.mask in (("causal",) if spec.paged else masks) and spec.skip != "stat"


_BASE = KernelSpec("sm90", "prefill", "bf16", "bf16", 128, 128, "causal", False, "dense", False, False)
_BYTES = replace(_BASE, dtype="e4m3", skip="skip")
_MLA = replace(_BASE, phase="mla", head_dim=576, head_dim_v=512, paged=True, skip="stat")
_DECODE = replace(_BASE, phase="decode", paged=True)
_BASE100, _DECODE100 = replace(_BASE, arch="sm100"), replace(_DECODE, arch="sm100")
SMOKE = (
    _BASE,
    replace(_BASE, skip="skip"),
    replace(_BASE, skip="stat"),
    replace(_BASE, dtype="fp16", out_dtype="fp16", head_dim=64, head_dim_v=64, mask="full", skip="skip"),
    replace(_BASE, head_dim=80, head_dim_v=80, skip="skip"),
    replace(_BASE, head_dim=96, head_dim_v=96, paged=True, skip="skip"),
    replace(_BASE, head_dim=192, mask="chunked", paged=True, skip="stat"),
    _BYTES,
    replace(_BYTES, phase="transpose", mask="full", skip="dense"),
    replace(_BASE, head_dim=256, head_dim_v=256, mask="window", paged=True, skip="stat"),
    _DECODE,
    replace(_DECODE, skip="skip"),
    combine_spec(_DECODE),
    _MLA,
    combine_spec(_MLA),
    _BASE100,
    replace(_BASE100, skip="stat"),
    replace(_BASE100, dtype="fp16", out_dtype="fp16", head_dim=64, head_dim_v=64, mask="full", skip="skip"),
    replace(_BASE100, head_dim=192, mask="chunked", paged=True),
    replace(_BASE100, head_dim=256, head_dim_v=256, mask="window", skip="skip"),
    replace(_BASE100, dtype="e4m3", skip="skip"),
    _DECODE100,
    replace(_DECODE100, skip="skip"),
    combine_spec(_DECODE100),
)

_SMOKE = frozenset(SMOKE)
_BELONGS: Mapping[str, Callable[[KernelSpec], bool]] = {
    "smoke": lambda spec: spec in _SMOKE,
    "default": in_default,
    "full": lambda spec: True,
}


def specs(
    set_name: str = "default", only: Mapping[str, Iterable[Value]] | None = None, archs: Iterable[str] = ()
) -> tuple[KernelSpec, ...]:
    """The kernels of a set, in the order of the feature table.

    Args:
        set_name: ``smoke``, ``default`` or ``full``.
        only: keep the specs whose field has one of the given values, for every field named. Kernels that combine or
            transpose have no mask or options to choose by: unless ``phase`` is named, they are kept with the decode and
            prefill kernels kept that need them.
        archs: keep these architectures; empty keeps all.
    """
    if set_name not in SETS:
        raise ValueError(f"set: expected one of {', '.join(SETS)} (got {set_name!r})")
    belongs = _BELONGS[set_name]
    wanted = {feature_of(name).name: tuple(values) for name, values in (only or {}).items()}
    kept = tuple(archs) or BY_NAME["arch"].values
    named = [
        spec
        for spec in all_specs()
        if belongs(spec) and spec.arch in kept and all(getattr(spec, name) in wanted[name] for name in wanted)
    ]
    return tuple(named) if "phase" in wanted else with_helpers(named)


def with_helpers(specs: Iterable[KernelSpec]) -> tuple[KernelSpec, ...]:
    """These kernels and those that combine what decode leaves or transpose V for prefill, in the order of the table."""
    attending = {spec for spec in specs if spec.phase not in HELPERS}
    helping = {combine_spec(spec) for spec in attending if spec.phase in ("decode", "mla")}
    helping |= {helper for spec in attending if spec.phase == "prefill" and (helper := transpose_spec(spec))}
    return tuple(spec for spec in all_specs() if spec in attending or spec in helping)


def build_command(spec: KernelSpec) -> str:
    """The line for a shell that builds exactly this kernel."""
    fields = [f"{name}={str(value).lower()}" for name, value in spec.values.items() if name != "arch"]
    chosen = "" if in_default(spec) else " --set full"
    return f"{places.command()} --sm {spec.arch.removeprefix('sm')}{chosen} --only {' '.join(fields)}"
