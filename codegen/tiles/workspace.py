"""What launches allocate besides outputs: its bound, and how V lies there where a kernel transposes it."""

from __future__ import annotations

from typing import NamedTuple

from .common import PANEL_BYTES

WORKSPACE_BYTES = 256 << 20  # at most, whatever the batch; what does not fit is computed in rounds


class Places(NamedTuple):
    """V transposed: ``places`` of ``tiles`` tiles of keys, whose columns take ``rows`` rows of 128 bytes a kv head.

    ``rounds`` of ``requests`` each share them.
    """

    places: int
    tiles: int
    rows: int
    heads: int
    requests: int
    rounds: int

    @property
    def nbytes(self) -> int:
        """Of all places."""
        return self.places * self.heads * self.rows * self.tiles * PANEL_BYTES

    @property
    def work(self) -> int:
        """Tiles of all kv heads."""
        return self.places * self.heads * self.tiles


def transposed_rows(head_dim_v: int, columns: int, tile_n: int) -> int:
    """Rows that ``columns`` of a kernel's ``head_dim_v`` take, where a row has as many columns' tiles as fit it."""
    return min(columns, head_dim_v * tile_n // PANEL_BYTES)


def places_of_requests(batch: int, len_k: int, heads: int, rows: int, tile_n: int) -> Places:
    """Each request of a round has a place as long as the longest.

    So the bound is ``WORKSPACE_BYTES``, or what one request takes where that is more: its V and half a tile of keys.
    """
    tiles = -(-len_k // tile_n) or 1
    fitting = WORKSPACE_BYTES // (tiles * heads * rows * PANEL_BYTES) or 1
    requests = min(batch, fitting)
    return Places(requests, tiles, rows, heads, requests, -(-batch // requests))


def places_of_ragged(batch: int, keys: int, heads: int, rows: int, tile_n: int) -> Places:
    """Requests follow each other in whole tiles, in one place, as only the device knows how long they are.

    So the bound is V's own size and a tile of keys for each request.
    """
    return Places(1, keys // tile_n + batch, rows, heads, batch, 1)
