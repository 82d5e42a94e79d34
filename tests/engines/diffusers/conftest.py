"""For all tests of this folder: no gradients, which kernels do not have, and no progress bars."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
