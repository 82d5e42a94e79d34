"""What follows from the table of arguments, the fields of ``Params``: lists by role, and homes of addresses.

Nothing here is written by hand: an argument that is added to ``Params`` is part of the signature, is checked for
overlaps and has its address kept up to date.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from ..params import OWN_NAME, Argument, Params, Role

ARGUMENTS: Mapping[str, Argument] = {item.name: item.metadata["argument"] for item in fields(Params) if item.init}


def _with(*roles: Role) -> tuple[str, ...]:
    return tuple(name for name, argument in ARGUMENTS.items() if argument.role in roles)


OPTIONS = _with(Role.OPTION)
SIZES = _with(Role.SIZE)
TENSORS = _with(Role.INPUT, Role.OUTPUT)  # the threshold may be a number instead
INPUTS = _with(Role.INPUT)
OUTPUTS = _with(Role.OUTPUT)
# Fields of the parameter block -> the argument whose address they hold.
POINTERS: Mapping[str, str] = {
    (name if argument.pointer == OWN_NAME else argument.pointer): name
    for name, argument in ARGUMENTS.items()
    if argument.pointer
}
TENSOR_MAPS: Mapping[str, str] = {
    argument.tensor_map: name for name, argument in ARGUMENTS.items() if argument.tensor_map
}
