"""The operators' schemas, made from the fields of ``Params``, and calls in the operators' form and back.

An argument that is added to ``Params`` is an argument of both operators, by its own name. One that is a number or a
tensor, which a schema cannot say, becomes two: ``name`` and ``name_tensor``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch

from .._call.arguments import OUTPUTS
from ..errors import expected
from ..params import Params

_TENSOR = "_tensor"  # ends the name of the tensor where a number may be given instead
_TYPES = {bool: "bool", float: "float", int: "SymInt", str: "str"}
_HINTS = get_type_hints(Params)
FIELDS: Mapping[str, Field[Any]] = {item.name: item for item in fields(Params) if item.init}


def _parts(name: str) -> tuple[bool, bool, tuple[Any, ...]]:
    """Whether a field's annotation allows None, whether a tensor, and what else it allows."""
    hint = _HINTS[name]
    allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    others = tuple(part for part in allowed if part not in (NoneType, torch.Tensor))
    return NoneType in allowed, torch.Tensor in allowed, others


# Arguments that may be a tensor or a number.
EITHER = tuple(name for name in FIELDS if all(_parts(name)[1:]))
# Those whose values are tuples, which operators are given as lists.
_TUPLES = tuple(name for name in FIELDS if any(get_origin(part) is tuple for part in _parts(name)[2]))
_BOOLS = tuple(name for name in FIELDS if bool in _parts(name)[2])


def _value_type(name: str, hint: Any) -> str:
    if hint in _TYPES:
        return _TYPES[hint]
    if get_origin(hint) is tuple and set(get_args(hint)) == {int}:
        return f"SymInt[{len(get_args(hint))}]"
    raise TypeError(f"{name}: expected an annotation that a schema can say (got {_HINTS[name]})")


def _default(name: str) -> str:
    value = FIELDS[name].default
    if isinstance(value, tuple):
        value = list(value)
    return f'"{value}"' if isinstance(value, str) else str(value)


def _arguments(name: str, *, required: bool) -> Iterator[str]:
    """What a field is in a schema; ``required``: without a default, and an output without None."""
    optional, tensor, others = _parts(name)
    mark = "?" if optional and not (required and name in OUTPUTS) else ""
    default = "" if required else f"={_default(name)}"
    for hint in others:
        yield f"{_value_type(name, hint)}{mark} {name}{default}"
    if tensor:
        alias = f"({chr(ord('a') + OUTPUTS.index(name))}!)" if name in OUTPUTS else ""
        yield f"Tensor{alias}{mark} {name}{_TENSOR if others else ''}{default}"


def _schema(names: Sequence[str], returns: str, *, required: str = "") -> str:
    positional = [name for name in names if FIELDS[name].default is MISSING]
    keywords = [name for name in names if name not in positional]
    texts = [text for name in positional for text in _arguments(name, required=True)]
    texts += ["*", *(text for name in keywords for text in _arguments(name, required=name == required))]
    return f"({', '.join(texts)}) -> {returns}"


# The fields that each operator has. Where no log-sum-exp is wanted, attention returns one without elements.
ATTENTION_FIELDS = tuple(name for name in FIELDS if name not in ("out", "lse"))
ATTENTION_OUT_FIELDS = tuple(name for name in FIELDS if name != "return_lse")
ATTENTION = _schema(ATTENTION_FIELDS, "(Tensor out, Tensor lse)")
ATTENTION_OUT = _schema(ATTENTION_OUT_FIELDS, "()", required="out")


def arguments_of(params: Params, names: tuple[str, ...]) -> dict[str, Any]:
    """The named fields of a call as arguments of an operator; it would turn a bool into a number and the reverse."""
    arguments = {}
    for name in names:
        value = getattr(params, name)
        if isinstance(value, bool) != (name in _BOOLS):
            raise expected(name, "a bool" if name in _BOOLS else "no bool", repr(value))
        arguments[name + _TENSOR if name in EITHER and isinstance(value, torch.Tensor) else name] = value
    return arguments


def params_of(*args: Any, **arguments: Any) -> Params:
    """The call that an operator's arguments make; those that are not given have their defaults."""
    for name in EITHER:
        tensor = arguments.pop(name + _TENSOR, None)
        if tensor is not None:
            if arguments.get(name) is not None:
                raise expected(name, f"None with {name}{_TENSOR}", arguments[name])
            arguments[name] = tensor
    for name in _TUPLES:
        if arguments.get(name) is not None:
            arguments[name] = tuple(arguments[name])
    return Params(*args, **arguments)
