"""``Params``: everything one call is told, by name, and the one table of its arguments.

What an argument is (:class:`Role`), where a launch puts its address and what it means stand beside the field. The
signature of a call, the check for overlaps, the pointers of the parameter block and the documentation follow from it
(:mod:`skimattn._call.arguments`).
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import torch

UNLIMITED = (-1, -1)  # a window over all keys
OWN_NAME = "*"  # of a pointer in the parameter block that is called as the argument


class Role(Enum):
    """What an argument is to a launch."""

    OPTION = "chooses the kernel, or a number that it is given; part of a call's form"
    SIZE = "says how long requests are"
    INPUT = "a tensor that is read"
    OUTPUT = "a tensor that is written"


@dataclass(frozen=True)
class Argument:
    """A row of the table: ``dtypes`` a tensor may have (empty: as q says), and what of a launch holds its address.

    ``pointer`` and ``tensor_map`` are fields of the parameter block.
    """

    role: Role
    doc: str
    dtypes: tuple[torch.dtype, ...] = ()
    pointer: str = ""
    tensor_map: str = ""


def _argument(role: Role, doc: str, *dtypes: torch.dtype, pointer: str = "", tensor_map: str = "") -> dict[str, Any]:
    return {"argument": Argument(role, doc, dtypes, pointer, tensor_map)}


def _option(doc: str, default: Any) -> Any:
    return field(default=default, metadata=_argument(Role.OPTION, doc))


def _size(doc: str, default: Any) -> Any:
    return field(default=default, metadata=_argument(Role.SIZE, doc))


def _input(doc: str, *dtypes: torch.dtype, pointer: str = OWN_NAME) -> Any:
    return field(default=None, metadata=_argument(Role.INPUT, doc, *dtypes, pointer=pointer))


def _output(doc: str, *dtypes: torch.dtype, tensor_map: str = "") -> Any:
    return field(default=None, metadata=_argument(Role.OUTPUT, doc, *dtypes, pointer=OWN_NAME, tensor_map=tensor_map))


@dataclass(slots=True, eq=False)
class Params:
    """One attention call. Cheap to make and reusable: repeated launches of one object are the fastest.

    Once it was launched it cannot be changed any more; ``dataclasses.replace`` makes another one.

    Sizes: B requests, Hq query heads, Hkv key/value heads (Hq is a multiple), D and Dv columns of keys and values.
    """

    q: torch.Tensor = field(
        metadata=_argument(
            Role.INPUT,
            "``[B, Sq, Hq, D]``, or ``[total_q, Hq, D]`` with ``cu_seqlens_q``; bf16, fp16 or e4m3.",
            tensor_map="tma_q",
        )
    )
    k: torch.Tensor = field(
        metadata=_argument(
            Role.INPUT,
            "``[B, Sk, Hkv, D]``, ``[total_k, Hkv, D]`` with ``cu_seqlens_k``, or pages (see ``kv_layout``); each "
            "goes with each layout of ``q``.",
            tensor_map="tma_k",
        )
    )
    v: torch.Tensor | None = field(
        metadata=_argument(
            Role.INPUT,
            "as ``k`` with Dv columns. Of MLA decode in latent form (``q`` and ``k`` with 576 columns, one kv head): "
            "None, or ``k[..., :512]``.",
            tensor_map="tma_v",
        )
    )
    page_table: torch.Tensor | None = _input(
        "int32 ``[B, max_pages]`` page numbers; makes ``k`` and ``v`` page pools, whose lengths come as ``seqused_k``.",
        torch.int32,
    )
    kv_layout: str = _option(
        'of pages: ``"NHD"`` = ``[pages, page_size, Hkv, D]``, ``"HND"`` = ``[pages, Hkv, page_size, D]``. A page has '
        "1, 2, 4 or 8 keys, or a multiple of 16 up to 1024. What is copied at once is the largest power of two that "
        "divides it (at most a tile), so the smallest pages are the slowest.",
        "NHD",
    )
    cu_seqlens_q: torch.Tensor | None = _input(
        "int32 ``[B + 1]`` row offsets of a ragged batch, starting at 0 (with ``seqused_q`` at any row), ending at "
        "total_q.",
        torch.int32,
    )
    cu_seqlens_k: torch.Tensor | None = _input(
        "int32 ``[B + 1]`` key offsets of a ragged batch, starting at 0 (with ``seqused_k`` at any row), ending at "
        "total_k.",
        torch.int32,
    )
    seqused_q: torch.Tensor | None = _input(
        "int32 ``[B]`` rows in use, the first ones of each request; default: all. Nothing is written for the others, "
        "and masks are aligned to the last one in use.",
        torch.int32,
    )
    seqused_k: torch.Tensor | None = _input("int32 ``[B]`` keys in use; default: all.", torch.int32)
    max_seqlen_q: int | None = _size(
        "the most rows of a request, with ``seqused_q`` of those in use, at most what q holds. A hint that must hold, "
        "since device values are never read back: longer requests count as that long, and their other rows stay "
        "unwritten.",
        None,
    )
    max_seqlen_k: int | None = _size("the most keys of a request, with ``seqused_k`` of those in use, likewise.", None)
    mask: str = _option(
        '``"full"`` (also ``"padding"``), ``"causal"``, ``"window"``, ``"chunked"`` or ``"custom"``; causal, '
        "window and chunked are aligned bottom-right: query i stands at key i + len_k - len_q.",
        "full",
    )
    window_size: tuple[int, int] = _option(
        'of ``mask="window"``: keys to the left and right, both inclusive, -1 = unlimited. Of ``mask="chunked"``: '
        "likewise, within the chunk, but ``(-1, -1)`` is causal (``(-1, chunk_size - 1)`` is the whole chunk).",
        UNLIMITED,
    )
    chunk_size: int | None = _option(
        'of ``mask="chunked"``: keys per chunk; a row sees none of another than its own (see ``window_size``).',
        None,
    )
    custom_mask: torch.Tensor | None = _input(
        'of ``mask="custom"``: bool ``[Sq, Sk]``, ``[B, Sq, Sk]`` or ``[B, Hq, Sq, Sk]``, in which B and Hq may be 1 = '
        "one for all (ragged: ``[total_q, max_k]`` or ``[Hq, total_q, max_k]``), or the same packed by "
        ":func:`skimattn.pack_mask` (every launch packs a bool mask anew, into memory that it allocates). Column j is "
        "key j of a request, unless ``custom_mask_keys`` says otherwise.",
        torch.bool,
        torch.uint8,
    )
    custom_mask_keys: int | None = _size(
        'of ``mask="custom"``: n, where ``custom_mask`` covers the last n keys of each request only, as a draft tree '
        "after a long cache does; rows see all keys before. Its columns are these keys, in place of Sk or max_k: key j "
        "of a request with len_k keys has column j - (len_k - n), so one with fewer than n has the last len_k columns. "
        "It is said here, and not by the mask's shape: how long requests are is known on the device only, and a packed "
        "row has room for up to 31 columns more. Default: the mask covers all keys.",
        None,
    )
    softmax_scale: float | None = _option("factor of q.k; default ``D ** -0.5``.", None)
    softcap: float = _option("scores become ``softcap * tanh(score / softcap)``; 0 = off.", 0.0)
    alibi_slopes: torch.Tensor | None = _input(
        "float32 ``[Hq]`` or ``[B, Hq]``; ``slope * distance`` is subtracted from the scores.", torch.float32
    )
    sinks: torch.Tensor | None = _input(
        "``[Hq]``, one extra logit per head in the denominator (natural logarithm); float32, or bf16 or fp16, which "
        "every launch converts anew, into memory that it allocates.",
        torch.float32,
        torch.bfloat16,
        torch.float16,
    )
    q_descale: torch.Tensor | None = _input(
        "of 8-bit q: float32, one element or ``[B, Hkv]``, finite and above 0; q counts times it.", torch.float32
    )
    k_descale: torch.Tensor | None = _input("likewise for k.", torch.float32)
    v_descale: torch.Tensor | None = _input("likewise for v.", torch.float32)
    skip_softmax_threshold: float | torch.Tensor | None = _input(
        "None = dense; a float in [0, 1], or float32 ``[B]`` or ``[B, Hq]`` read on the device at run time = "
        "skip tiles whose scores are that much below the row maximum (exp domain, final value).",
        torch.float32,
        pointer="threshold",
    )
    stats: torch.Tensor | None = _output(
        "int64 ``[2]``, ``[B, 2]`` or ``[B, Hq, 2]``; (visited, skipped) tiles are added to it.", torch.int64
    )
    skip_map: torch.Tensor | None = _output(
        "uint8 ``[B, Hq, groups, tiles]``, with ``stats``; visited tiles become 1 = kept or 2 = skipped.", torch.uint8
    )
    out: torch.Tensor | None = _output(
        "where to write, shaped as ``q`` with Dv columns and of its dtype; default: a new tensor. For 8-bit "
        "``q`` it is bf16, or fp16 if such a tensor is given. It shares no element with another argument, but may "
        "lie between the rows of one.",
        tensor_map="tma_o",
    )
    lse: torch.Tensor | None = _output(
        "float32 ``[B, Sq, Hq]`` or ``[total_q, Hq]`` to write the log-sum-exp of the kept keys to.", torch.float32
    )
    return_lse: bool = _option("return ``(out, lse)``, with a new ``lse`` if none was given.", False)
    # What the launcher prepared for this object; never part of the meaning of the call.
    _prepared: object | None = field(default=None, init=False, repr=False)


def _described(text: str) -> str:
    """The documentation of :class:`Params` with a line for every argument, from the table."""
    lines = [
        textwrap.fill(
            f"{item.name}: {item.metadata['argument'].doc}",
            width=116,
            initial_indent="        ",
            subsequent_indent="            ",
            break_on_hyphens=False,
        )
        for item in fields(Params)
        if item.init
    ]
    return "\n".join([text.rstrip() + "\n", "    Args:", *lines, "    "])


Params.__doc__ = _described(Params.__doc__ or "")


class _Launched(Params):
    """A call that was launched. It is this class that forbids changes, since a frozen dataclass costs 2 us a call."""

    __slots__ = ()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """A new object (``dataclasses.replace`` makes one) was not launched yet."""
        object.__setattr__(self, "__class__", Params)
        self.__init__(*arguments, **named)  # type: ignore[misc]

    def __reduce__(self) -> tuple[type[Params], tuple[object, ...]]:
        """Copies, deep ones and pickles too, were not launched yet either."""
        return Params, tuple(getattr(self, item.name) for item in fields(Params) if item.init)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: the launch that was prepared would not know."""
        raise AttributeError(f"{name}: this call was launched and cannot change; dataclasses.replace makes another one")


def forbid_changes(params: Params) -> bool:
    """From now on; whether changes were forbidden before."""
    if type(params) is Params:
        params.__class__ = _Launched
        return False
    return True


def keep_prepared(params: Params, bound: object) -> None:
    """Let later launches of ``params`` find what was prepared."""
    object.__setattr__(params, "_prepared", bound)
