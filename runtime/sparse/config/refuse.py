"""How configurations refuse: the key, what was expected, what was given, whoever found it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ...errors import ArgumentError, expected

_WANTED = {
    "missing": "to be given",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
    "dict_type": "keys and values",
    "mapping_type": "keys and values",
    "model_type": "keys and values",
    "list_type": "a list",
    "tuple_type": "a list",
    "literal_error": "{expected}",
}


def refusal(error: ValidationError, fields: Mapping[str, object]) -> ArgumentError:
    """The first thing that is wrong, as every refusal of this package says it.

    Args:
        error: of pydantic.
        fields: what the model has, for keys that it does not.
    """
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    context: dict[str, Any] = first.get("ctx", {})
    if first["type"] == "value_error":  # a refusal from a validator of ours, which names what lies below the key
        text = str(context["error"])
        return ArgumentError(text if not key else f"{key}{text}" if text.startswith(":") else f"{key}.{text}")
    if first["type"] == "extra_forbidden":
        return expected(key, f"one of {', '.join(fields)}", "another key")
    wanted = _WANTED.get(first["type"], first["msg"]).format(**context)
    return expected(key, wanted, repr(first["input"]))
