"""What a tensor map covers of a tensor."""

from __future__ import annotations

Extent = tuple[int, int, int, int, int, int, int]  # of a map: its four dims, then its three strides in bytes


def extent_of(shape: tuple[int, ...], strides: tuple[int, ...], size: int, hnd: bool = False) -> Extent:
    """Dims and strides of the map over ``[rows, heads, columns]``, ``[outer, rows, heads, columns]`` or, with ``hnd``,
    ``[outer, heads, rows, columns]``, of elements of ``size`` bytes; any legal stride where there is only one index.
    """
    if len(shape) == 3:
        (rows, heads, columns), outer, (row, head, _), request = shape, 1, strides, 0
    elif hnd:
        (outer, heads, rows, columns), (request, head, row, _) = shape, strides
    else:
        (outer, rows, heads, columns), (request, row, head, _) = shape, strides
    legal = columns * size
    return (
        columns,
        rows or 1,
        heads or 1,
        outer or 1,
        row * size if rows > 1 else legal,
        head * size if heads > 1 else legal,
        request * size if outer > 1 else legal,
    )
