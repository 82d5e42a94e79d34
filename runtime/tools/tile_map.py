"""Draws the ``skip_map`` of one head: as text for a terminal, as a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_VISITED, KEPT, SKIPPED = 0, 1, 2
BLOCKS = " ░▒▓█"  # not visited, then by the kept share of what was visited: none, a half or less, more, all
ASCII = " .-+#"
_GRID = 3  # palette index of the lines between tiles
_PALETTE = bytes.fromhex("ffffff 1f4e79 f6c28b d0d0d0")  # white, blue, orange, grey
_LINE_LEAST = 6  # pixels of a tile from which on lines are drawn


def text_lines(skip_map: torch.Tensor, shades: str = BLOCKS, width: int = 64, height: int = 32) -> list[str]:
    """A line per row group; large maps show several tiles in one character, small ones several characters a tile.

    Args:
        skip_map: uint8 ``[groups, tiles]``: 0 = not visited, 1 = kept, 2 = skipped.
        shades: five characters, as :data:`BLOCKS`.
        width: the most characters of a line.
        height: the most lines.
    """
    groups, tiles = skip_map.shape
    down, right = max(1, -(-groups // height)), max(1, -(-tiles // width))
    repeat = max(1, min(4, width // max(1, tiles)))  # 4: a character is half as wide as high, a tile twice
    lines = []
    for rows in torch.split(skip_map.cpu(), down):
        blocks = torch.split(rows, right, 1)
        lines.append("".join(_shade(block, shades) * repeat for block in blocks))
    return lines


def _shade(block: torch.Tensor, shades: str) -> str:
    kept, skipped = int((block == KEPT).sum()), int((block == SKIPPED).sum())
    if not kept + skipped:
        return shades[0]
    if not kept or not skipped:
        return shades[4] if kept else shades[1]
    return shades[2] if kept <= skipped else shades[3]


def picture(skip_map: torch.Tensor, tile: tuple[int, int], size: int = 1024) -> Image:
    """A picture: blue = kept, orange = skipped, white = not visited. Needs Pillow.

    Args:
        skip_map: uint8 ``[groups, tiles]``.
        tile: query rows of a group and keys of a tile; a pixel is as many rows as keys.
        size: about how many pixels the longer side gets; at least one per tile.

    Raises:
        ModuleNotFoundError: Pillow is not there; the text says how to get it.
    """
    try:
        from PIL import Image  # an extra, which calls do without
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need Pillow: pip install 'skimattn[pictures]'") from error
    groups, tiles = skip_map.shape
    unit = size / max(groups * tile[0], tiles * tile[1], 1)
    high, wide = (max(1, round(side * unit)) for side in tile)
    pixels = skip_map.cpu().repeat_interleave(high, 0).repeat_interleave(wide, 1)
    if min(high, wide) >= _LINE_LEAST:
        pixels[::high] = _GRID
        pixels[:, ::wide] = _GRID
    image = Image.fromarray(pixels.numpy(), "P")
    image.putpalette(_PALETTE)
    return image


def write_png(path: Path, skip_map: torch.Tensor, tile: tuple[int, int]) -> None:
    """Write what :func:`picture` draws; ``OSError`` where that cannot be done."""
    picture(skip_map, tile).save(path, "PNG")
