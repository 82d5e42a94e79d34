"""Renders the sources: one ``.cu`` per kernel and the shared headers. Jinja decides which; C++ decides how."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import jinja2

from . import parameter_block, variables
from .features import FEATURES
from .spec import KernelSpec
from .tiles import order_of, tile_of

TEMPLATES = "skimattn.templates"
TEMPLATES_VARIABLE = "SKIMATTN_TEMPLATES"  # a folder to use instead, for work on kernels outside the checkout
HEADERS = ("params.cuh", "features.cuh", "wgmma.cuh", "tcgen05.cuh")
# Widths that are needed: n of a wgmma (some tile_n or head_dim_v, or the rows of swapped operands), registers of a
# tcgen05.ld or .st.
_WIDTHS = {"wgmma.cuh": (16, 64, 80, 96, 128, 192, 256), "tcgen05.cuh": (8, 16, 32)}


def templates_root() -> Path:
    """The folder of the templates, with ``include/`` in it: in the checkout or in the installed package."""
    return variables.folder(TEMPLATES_VARIABLE) or Path(str(resources.files(TEMPLATES)))


def environment() -> jinja2.Environment:
    """The one Jinja environment. Delimiters stay clear of asm operand lists such as ``{%0, %1}``."""
    return _environment(templates_root())


@cache
def _environment(root: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (root / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        variable_start_string="${",
        variable_end_string="}",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
    )


def camel(value: str) -> str:
    """``stat`` -> ``Stat``: how a feature value is spelled in the C++ enums."""
    return value.capitalize()


def render_kernel(spec: KernelSpec) -> str:
    """The ``.cu`` of one kernel: its traits and its ``extern "C"`` entry."""
    template = environment().get_template("kernel.cu.j2")
    return template.render(
        spec=spec,
        tile=tile_of(spec),
        order=order_of(spec),
        camel=camel,
    )


def render_header(name: str) -> str:
    """One of :data:`HEADERS`, shared by all kernels."""
    enums = [feature for feature in FEATURES if all(isinstance(value, str) for value in feature.values)]
    return (
        environment()
        .get_template(f"{name}.j2")
        .render(
            fields=parameter_block.FIELDS,
            offsets=parameter_block.OFFSETS,
            size=parameter_block.SIZE,
            alignment=parameter_block.ALIGNMENT,
            tensor_map_bytes=parameter_block.TENSOR_MAP_BYTES,
            enums=enums,
            camel=camel,
            widths=_WIDTHS.get(name, ()),
        )
    )
