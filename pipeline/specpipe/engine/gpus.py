"""NVIDIA GPUs as data, from NVIDIA's data sheets: the facts that a plan uses.

Throughput is dense (the sheets' large print is with sparsity, which is twice as much) and, for the
GeForce cards, with 32-bit accumulation, as TensorRT-LLM's kernels have it. Every row was compared
with copies of the sheets; docs/gpu.md lists them.
"""

import difflib
from dataclasses import dataclass

from specpipe.core.errors import Rejection


@dataclass(frozen=True)
class Gpu:
    """One product."""

    name: str
    sm: int  # compute capability without the dot
    memory_gb: float  # as sold: 10^9 bytes
    bandwidth_gbs: float  # of the memory, 10^9 bytes a second
    fp16_tflops: float  # float16 and bfloat16
    int8_tops: float
    fp8_tflops: float | None  # None: the tensor cores do not have the type
    fp4_tflops: float | None
    nvlink_gbs: float  # both directions together; 0: PCIe only
    power_w: int  # the most that the card may draw
    source: str  # the data sheet

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gb * 1e9)


_A100 = "A100 data sheet"
_H100 = "H100 data sheet"
_ADA = "Ada GPU architecture white paper"
_HGX = "HGX B200 data sheet, at 1000 W"

# fmt: off
_ROWS = (
    Gpu("A10",             86,  24,  600,  125,  250, None, None,    0,  150, "A10 data sheet"),
    Gpu("A30",             80,  24,  933,  165,  330, None, None,  200,  165, "A30 data sheet"),
    Gpu("A100-40GB-PCIe",  80,  40, 1555,  312,  624, None, None,  600,  250, _A100),
    Gpu("A100-40GB-SXM",   80,  40, 1555,  312,  624, None, None,  600,  400, _A100),
    Gpu("A100-80GB-PCIe",  80,  80, 1935,  312,  624, None, None,  600,  300, _A100),
    Gpu("A100-80GB-SXM",   80,  80, 2039,  312,  624, None, None,  600,  400, _A100),
    Gpu("L4",              89,  24,  300,  121,  242,  242, None,    0,   72, "L4 data sheet"),
    Gpu("L40S",            89,  48,  864,  362,  733,  733, None,    0,  350, "L40S data sheet"),
    Gpu("H100-PCIe",       90,  80, 2000,  756, 1513, 1513, None,  600,  350, _H100),
    Gpu("H100-SXM",        90,  80, 3350,  989, 1979, 1979, None,  900,  700, _H100),
    Gpu("H100-NVL",        90,  94, 3900,  835, 1671, 1671, None,  600,  400, _H100),
    Gpu("H200",            90, 141, 4800,  989, 1979, 1979, None,  900,  700, "H200 data sheet"),
    Gpu("GH200-96GB",      90,  96, 4000,  989, 1979, 1979, None,  900, 1000, "GH200 data sheet"),
    Gpu("GH200-144GB",     90, 144, 4900,  989, 1979, 1979, None,  900, 1000, "GH200 data sheet"),
    Gpu("B200",           100, 180, 8000, 2250, 4500, 4500, 9000, 1800, 1000, _HGX),
    Gpu("RTX-4090",        89,  24, 1008,  165,  661,  330, None,    0,  450, _ADA),
    Gpu("RTX-5090",       120,  32, 1792,  210,  838,  419, 1676,    0,  575,
        "RTX Blackwell GPU architecture white paper"),
    Gpu("RTX-6000-Ada",    89,  48,  960,  364,  728,  728, None,    0,  300, _ADA),
    Gpu("RTX-PRO-6000",   120,  96, 1792,  504, 1008, 1008, 2015,    0,  600,
        "RTX PRO 6000 Blackwell Workstation Edition data sheet"),
)
# fmt: on

GPUS = {gpu.name: gpu for gpu in _ROWS}

# Short names of GPUs that have a usual variant. H100 has none: its three variants differ widely.
ALIASES = {
    "A100-40GB": "A100-40GB-SXM",
    "A100-80GB": "A100-80GB-SXM",
    "GH200": "GH200-96GB",
}


SIMILAR = 0.75  # of difflib's ratio: one of four letters may be wrong


def find_gpu(name: str) -> Gpu | None:
    """Return the GPU of a name or alias, in upper or lower case; None if it is not in the table."""
    spelled = spelling(name)
    return GPUS.get(ALIASES.get(spelled, spelled))


def spelling(name: str) -> str:
    """Return a name or alias as the table spells it; an unknown one as it is."""
    return _SPELLINGS.get(name.strip().lower(), name)


_SPELLINGS = {name.lower(): name for name in (*GPUS, *ALIASES)}


def unknown_gpu(name: str, key: str = "engine.gpu") -> Rejection:
    """Refuse a GPU that is not in the table, with similar names if any; `key` named it."""
    close = _similar(name)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return Rejection(f"{key} is {name!r}, which is not known", f"{hint}known: {', '.join(GPUS)}")


def _similar(name: str) -> list[str]:
    """Return the names that begin with `name`, or whose product name is similar."""
    asked = name.strip().lower()
    begins = [known for known in GPUS if known.lower().startswith(asked)] if asked else []
    if begins:
        return begins
    by_word: dict[str, list[str]] = {}
    for known in GPUS:
        for word in {known.lower(), known.lower().split("-")[0]}:
            if word[0] == asked[:1]:
                by_word.setdefault(word, []).append(known)
    close = difflib.get_close_matches(asked, by_word, n=1, cutoff=SIMILAR)
    return [known for word in close for known in by_word[word]]
