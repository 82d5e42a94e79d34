"""The architectures of the GPUs in this machine, asked of the driver: building needs no torch."""

from __future__ import annotations

from .arch import ARCHS
from .errors import ArgumentError, expected


def local_archs() -> tuple[str, ...]:
    """The architectures that kernels are made for, of the GPUs here, each once.

    Raises:
        ArgumentError: there is no driver, no GPU, or none that kernels exist for.
    """
    found = [_name(capability) for capability in _capabilities()]
    known = tuple(dict.fromkeys(name for name in found if name in ARCHS))
    if not known:
        raise _unknown(f"GPUs: {', '.join(dict.fromkeys(found)) or 'none'}")
    return known


def _unknown(why: str) -> ArgumentError:
    return expected("--sm", f"one of {', '.join(ARCHS)}, as no GPU here says which", why)


def _name(capability: tuple[int, int]) -> str:
    by_capability = {arch.capability: arch.name for arch in ARCHS.values()}
    return by_capability.get(capability, f"compute capability {capability[0]}.{capability[1]}")


def _capabilities() -> list[tuple[int, int]]:
    from cuda.bindings import driver  # a machine that only builds may have no driver

    def call(name: str, *arguments: object) -> int:
        status, *values = getattr(driver, name)(*arguments)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise _unknown(f"{name}: {driver.CUresult(status).name}")
        return int(values[0]) if values else 0

    try:
        call("cuInit", 0)
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _unknown(f"no CUDA driver: {reason}") from error
    names = driver.CUdevice_attribute
    parts = (names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
    devices = range(call("cuDeviceGetCount"))
    return [(call("cuDeviceGetAttribute", parts[0], at), call("cuDeviceGetAttribute", parts[1], at)) for at in devices]
