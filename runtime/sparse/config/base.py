"""What all parts of a configuration have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .refuse import refusal


class Model(BaseModel):
    """What all parts of a configuration have in common: they do not change, and know all of their keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Check and keep the values.

        Raises:
            ArgumentError: one of them cannot be; the text names its key.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise refusal(error, type(self).model_fields) from None
