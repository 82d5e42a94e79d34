"""Turns a call into a ``Problem``, or refuses it with a reason. Launches and writes nothing.

Values of device tensors (lengths, page numbers, thresholds) are never read back, so they are checked only where they
lie on the CPU. ``max_seqlen_q`` and ``max_seqlen_k`` are believed for the same reason.
"""

from __future__ import annotations

from ..params import Params
from . import latent, options, outputs
from .form import check_form
from .problem import Problem
from .sizes import check_sizes
from .values import check_values


def validate(params: Params) -> Problem:
    """The call in plain numbers; :class:`~skimattn.errors.ArgumentError` if any argument is not acceptable."""
    problem = check_sizes(check_form(params), params)
    check_addresses(params)
    if problem.device.type == "cpu":
        check_values(problem)
    return problem


def check_addresses(params: Params) -> None:
    """What depends on where the tensors lie rather than on their shapes: alignment and overlap."""
    options.check_alignment(params)
    latent.check_address(params)
    outputs.check_overlap(params)
