"""The kernel of a launch that transposes V for prefill: where it puts it."""

from __future__ import annotations

from skimattn.codegen.metadata import Kernel
from skimattn.codegen.tiles.common import PANEL_BYTES
from skimattn.codegen.tiles.workspace import Places

from .plan import TensorMapSpec


def map_of_places(places: Places, kernel: Kernel, address: int) -> TensorMapSpec:
    """The map over the workspace: a copy brings a tile of keys of all the kernel's columns."""
    row = places.tiles * PANEL_BYTES
    head = row * places.rows
    box = (PANEL_BYTES, kernel.head_dim_v * kernel.tile_n // PANEL_BYTES, 1, 1)
    dims = (row, places.rows, places.heads, places.places)
    return TensorMapSpec(address, kernel.dtype, dims, (row, head, head * places.heads), box)
