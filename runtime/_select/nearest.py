"""Which kernels are near one that does not exist, or is not built here."""

from __future__ import annotations

from collections.abc import Iterable

from skimattn.codegen import sets
from skimattn.codegen.spec import KernelSpec

from ..errors import NoKernelError

_NEAREST = 3


def differences(spec: KernelSpec, other: KernelSpec) -> dict[str, tuple[object, object]]:
    """Fields in which two specs differ: name -> (wanted, other's)."""
    theirs = other.values
    return {name: (value, theirs[name]) for name, value in spec.values.items() if value != theirs[name]}


def describe_nearest(spec: KernelSpec, candidates: Iterable[KernelSpec]) -> str:
    """The candidates that differ in the fewest fields, and in which."""
    ranked = sorted(candidates, key=lambda other: (len(differences(spec, other)), other.name))[:_NEAREST]
    if not ranked:
        return "no kernels are built"
    texts = []
    for other in ranked:
        fields = [f"{name}={theirs} instead of {ours}" for name, (ours, theirs) in differences(spec, other).items()]
        texts.append(f"{other.name} ({', '.join(fields)})")
    return "nearest: " + "; ".join(texts)


def not_built(spec: KernelSpec, built: Iterable[KernelSpec], why: str) -> NoKernelError:
    """The refusal for a kernel that exists in the matrix but not on this machine."""
    return NoKernelError(
        f"{spec.name}: not built, {why}; {describe_nearest(spec, built)}. To add it: {sets.build_command(spec)}"
    )
