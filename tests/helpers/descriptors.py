"""An encoder of SM100's descriptors that shares nothing with the kernels: what they build is compared with this.

Written from the field tables of the PTX ISA (tcgen05 shared-memory descriptor, instruction descriptor) as design notes
quote them. Every field is checked for what it may hold, so that a wrong geometry is named and not just another number.
"""

from __future__ import annotations

from dataclasses import dataclass

from .placement import Operand

_SWIZZLE_CODES = {0: 0, 128: 2, 64: 4, 32: 6}  # swizzle bytes -> bits 61-63; SM90 has other codes in bits 62-63
_SM90_CODES = {0: 0, 128: 1, 64: 2, 32: 3}
_F16_TYPES = {"fp16": 0, "bf16": 1}  # of kind::f16
_F8_TYPES = {"e4m3": 0, "e5m2": 1, "e2m3": 2, "e3m2": 3, "e2m1": 4}  # of kind::f8f6f4
_RESULTS = {"fp16": 0, "fp32": 1, "s32": 2}


def _expect(holds: bool, name: str, wanted: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {wanted} (got {got})")


def _sixteenths(name: str, value: int, bits: int) -> int:
    """A byte count as the descriptors hold it: without its four lowest bits."""
    _expect(value % 16 == 0, name, "a multiple of 16 bytes", value)
    _expect(0 <= value < 16 << bits, name, f"0 to {(16 << bits) - 16} bytes", value)
    return value >> 4


def _common(operand: Operand, address: int, base_offset: int) -> int:
    """Bits 0 to 51, which SM90 and SM100 share."""
    _expect(0 <= base_offset < 8, "base offset", "0 to 7", base_offset)
    word = _sixteenths("address", address, 14)
    word |= _sixteenths("leading byte offset", operand.leading, 14) << 16
    word |= _sixteenths("stride byte offset", operand.stride, 14) << 32
    return word | base_offset << 49


def shared_descriptor(operand: Operand, address: int, base_offset: int = 0) -> int:
    """The 64 bits by which tcgen05.mma finds an operand in shared memory.

    Args:
        operand: layout and strides.
        address: of the first element, in bytes from the start of shared memory.
        base_offset: of the swizzle pattern; 0 where the pattern starts at a multiple of its own size.
    """
    version = 1  # bits 46 to 48
    return _common(operand, address, base_offset) | version << 46 | _SWIZZLE_CODES[operand.swizzle] << 61


def sm90_descriptor(operand: Operand, address: int, base_offset: int = 0) -> int:
    """The same operand for wgmma: no version, other swizzle codes."""
    return _common(operand, address, base_offset) | _SM90_CODES[operand.swizzle] << 62


@dataclass(frozen=True)
class Product:
    """The shape and types of one tcgen05.mma of one CTA (cta_group::1, dense). ``m`` and ``n`` in rows and columns."""

    a: str
    b: str
    m: int
    n: int
    a_mn_major: bool = False
    b_mn_major: bool = False
    result: str = "fp32"

    @property
    def kind(self) -> str:
        """The instruction's kind, which the descriptor does not hold."""
        return "f16" if self.a in _F16_TYPES else "f8f6f4"

    @property
    def depth(self) -> int:
        """Elements along K of one instruction."""
        return 16 if self.kind == "f16" else 32


def instruction_descriptor(product: Product) -> int:
    """The 32 bits that describe ``product`` to tcgen05.mma; ``ValueError`` names a field that cannot be so."""
    types = _F16_TYPES if product.kind == "f16" else _F8_TYPES
    for name, kind in (("type of A", product.a), ("type of B", product.b)):
        _expect(kind in types, name, f"one of {', '.join(types)}", kind)
    _expect(product.result in _RESULTS, "type of D", f"one of {', '.join(_RESULTS)}", product.result)
    _expect(product.kind == "f16" or product.result == "fp32", "type of D", "fp32 for 8-bit elements", product.result)
    _expect(product.m in (64, 128), "M", "64 or 128", product.m)
    step = 8 if product.m == 64 else 16
    if product.kind == "f8f6f4" and product.b_mn_major:
        step = 16
    _expect(product.n % step == 0, "N", f"a multiple of {step}", product.n)
    _expect(step <= product.n <= 256, "N", f"{step} to 256", product.n)
    word = _RESULTS[product.result] << 4 | types[product.a] << 7 | types[product.b] << 10
    word |= product.a_mn_major << 15 | product.b_mn_major << 16
    return word | product.n >> 3 << 17 | product.m >> 4 << 24
