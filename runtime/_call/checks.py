"""Small checks that every argument passes through; each names the argument, what was wanted and what was given."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real

import torch
from torch.compiler import is_compiling

from ..errors import ArgumentError, expected

TMA_BYTES = 16  # of addresses and strides that a tensor map describes
MAX_STRIDE = 1 << 40  # bytes, of a tensor map
MAX_DIM = 1 << 30  # rows, heads, pages and keys, whose sums and differences are 32-bit on the device
_MAX_INT = (1 << 31) - 1
_MAX_DISTANCES = 4  # more are only where strides are no sizes of anything; those tensors count as sharing memory
_Dims = list[tuple[int, int]]  # stride in bytes and size


def describe(tensor: torch.Tensor) -> str:
    """``torch.float32 [2, 3] on cpu``."""
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def require_tensor(name: str, value: object) -> torch.Tensor:
    """``value`` as a dense tensor that needs no gradient."""
    if not isinstance(value, torch.Tensor):
        raise expected(name, "a torch.Tensor", type(value).__name__)
    if value.layout is not torch.strided:
        raise expected(name, "a dense (strided) tensor", value.layout)
    if value.is_nested:  # of the strided layout, as it says, but without a shape
        raise expected(name, "a dense (strided) tensor", "a nested tensor")
    # Kernels would read what is not negated yet. Code that is traced cannot ask, and asks when it runs.
    if not is_compiling() and value.is_neg():
        raise expected(name, "a tensor whose negation was carried out (tensor.resolve_neg())", "a negative view")
    if value.requires_grad and torch.is_grad_enabled():
        raise expected(name, "no requires_grad, since there is no backward pass (use torch.no_grad())", "requires_grad")
    return value


def require_dtype(name: str, tensor: torch.Tensor, *wanted: torch.dtype) -> None:
    """The tensor has one of the dtypes."""
    if tensor.dtype not in wanted:
        raise expected(name, "dtype " + " or ".join(map(str, wanted)), tensor.dtype)


def require_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """The tensor lives where q does."""
    if tensor.device != device:
        raise expected(name, f"a tensor on {device}, like q", tensor.device)


def require_shape(name: str, tensor: torch.Tensor, *wanted: Sequence[int | str]) -> None:
    """The shape is one of ``wanted``; a name in a shape stands for any size."""
    for shape in wanted:
        if len(shape) == tensor.dim() and all(
            isinstance(want, str) or want == size for want, size in zip(shape, tensor.shape, strict=True)
        ):
            return
    texts = " or ".join("[" + ", ".join(map(str, shape)) + "]" for shape in wanted)
    raise expected(name, f"shape {texts}", list(tensor.shape))


def require_contiguous(name: str, tensor: torch.Tensor) -> None:
    """The elements follow each other without gaps."""
    if not tensor.is_contiguous():
        raise expected(name, "a contiguous tensor", f"strides {list(tensor.stride())}")


def require_tma_strides(name: str, tensor: torch.Tensor) -> None:
    """Last dimension contiguous, all other strides a multiple of 16 bytes, sizes within 32 bits."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise expected(name, "a contiguous last dimension (stride 1)", f"strides {list(tensor.stride())}")
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        step = stride * tensor.element_size()
        if size > 1 and (step % TMA_BYTES or step >= MAX_STRIDE):
            raise expected(name, "strides that are multiples of 16 bytes, below 2**40", f"{step} bytes")
        if size >= MAX_DIM:
            raise expected(name, "dimensions below 2**30", list(tensor.shape))


def require_near(name: str, tensor: torch.Tensor) -> None:
    """Offsets of all elements fit 32 bits."""
    span = sum(max(0, size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if span > _MAX_INT:
        raise expected(name, "elements within 2**31 of the first", f"strides {list(tensor.stride())}")


def require_memory(name: str, tensor: torch.Tensor) -> int:
    """The address of the first element, which lies in memory: fake tensors and freed storages have none."""
    wanted = "a tensor with memory of its own"
    try:
        address = tensor.data_ptr()
    except RuntimeError as error:
        raise expected(name, wanted, f"{type(tensor).__name__}: {str(error).splitlines()[0]}") from error
    if not address and tensor.numel():
        raise expected(name, wanted, f"{type(tensor).__name__} without memory: fake, or its storage was resized")
    return address


def require_aligned(name: str, address: int, multiple: int = TMA_BYTES) -> None:
    """The first element's address is a multiple of ``multiple`` bytes."""
    if address % multiple:
        raise expected(name, f"an address that is a multiple of {multiple} bytes", f"{address:#x}")


def require_one_writer(name: str, tensor: torch.Tensor) -> None:
    """No two elements of an output share memory (as in an expanded tensor)."""
    dims = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    reach = 1
    for stride, size in dims:
        if stride < reach:
            raise expected(name, "elements that do not share memory", f"strides {list(tensor.stride())}")
        reach = stride * (size - 1) + reach


def integer(name: str, value: object, low: int, high: int = _MAX_INT) -> int:
    """``value`` as an int in ``[low, high]``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise expected(name, "an int", f"{type(value).__name__} {value!r}")
    result = int(value)
    if not low <= result <= high:
        raise expected(name, f"an int from {low} to {high}", result)
    return result


def number(name: str, value: object, wanted: str, low: float, high: float = math.inf) -> float:
    """``value`` as a finite float from ``low`` to ``high``; ``wanted`` says so in words."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise expected(name, wanted, f"{type(value).__name__} {value!r}")
    result = float(value)
    if not math.isfinite(result) or not low <= result <= high:
        raise expected(name, wanted, result)
    return result


def one_of(name: str, value: object, wanted: Collection[str]) -> str:
    """``value`` as one of the names."""
    if not isinstance(value, str) or value not in wanted:
        raise expected(name, "one of " + ", ".join(map(repr, wanted)), repr(value))
    return value


def span_bytes(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last; empty tensors span nothing."""
    count = tensor.numel()
    if count == 0 or tensor.is_contiguous():
        return count * tensor.element_size()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def byte_range(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and end of the memory that the elements span; empty tensors span nothing."""
    span = span_bytes(tensor)
    start = tensor.data_ptr() if span else 0
    return start, start + span


def refuse_overlap(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """``tensor`` is written, so it must not share memory with ``other``."""
    start, end = byte_range(tensor)
    other_start, other_end = byte_range(other)
    if start < other_end and other_start < end and not interleaved(tensor, other):
        raise ArgumentError(
            f"{name}: expected memory of its own (got bytes {start:#x}..{end:#x}, which overlap {other_name} at "
            f"{other_start:#x}..{other_end:#x})"
        )


def interleaved(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors in one stretch of memory surely share no byte, as slices of one packed tensor do."""
    offset = other.data_ptr() - tensor.data_ptr()
    return _apart(_byte_strides(tensor), tensor.element_size(), _byte_strides(other), other.element_size(), offset)


def _apart(dims: _Dims, size: int, other: _Dims, other_size: int, offset: int) -> bool:
    """Whether elements of ``size`` bytes at all places of ``dims`` share none with others that begin at ``offset``.

    Where some step divides all strides that are longer, what remains inside is the same at every multiple of it. So
    only that has to be apart, at every distance that the two can have modulo the step.
    """
    if offset >= _reach(dims, size) or offset + _reach(other, other_size) <= 0:
        return True
    strides = sorted({stride for stride, _ in (*dims, *other)}, reverse=True)
    for index, period in enumerate(strides):
        if any(stride % period for stride in strides[:index]):
            continue
        inside, other_inside = ([dim for dim in x if dim[0] < period] for x in (dims, other))
        nearest = 1 - _reach(other_inside, other_size)
        distances = range(nearest + (offset - nearest) % period, _reach(inside, size), period)
        if len(distances) > _MAX_DISTANCES:
            continue
        if all(_apart(inside, size, other_inside, other_size, distance) for distance in distances):
            return True
    return False


def _reach(dims: _Dims, size: int) -> int:
    """Bytes from the first element to the end of the last."""
    return sum(stride * (count - 1) for stride, count in dims) + size


def _byte_strides(tensor: torch.Tensor) -> _Dims:
    """Stride and size of every dimension that moves; an expanded one (stride 0) stays where it is."""
    size = tensor.element_size()
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    return [(stride * size, count) for count, stride in dims if count > 1 and stride]
