"""Makes ``attn_implementation="skimattn"`` known to all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from skimattn.integrations.transformers import register


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    register()


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
