"""Has ``from skimattn.flash_attn_interface import flash_attn_with_kvcache`` say why there is no such function.

Python drops the text of the AttributeError that a module raises for a name which it has not, and then looks for a
submodule of that name, which is this one.
"""

from __future__ import annotations

from ._shared import absent

raise ImportError(absent("skimattn.flash_attn_interface", "flash_attn_with_kvcache"))
