"""This machine: its CPU, its memory, and the instructions that decide how fast a data type is."""

import os
import platform
from collections.abc import Collection
from pathlib import Path

_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni")


def memory_bytes() -> int:
    """Return the size of this machine's RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_kinds(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the flags of the CPU that matter here; the architecture if it has none of them."""
    try:
        flags = cpuinfo.read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    return tuple(name for name in _FLAGS if name in flags) or (platform.machine(),)


def emulates_bfloat16(kinds: Collection[str]) -> bool:
    """Return whether an x86 CPU with these flags has no instructions for bfloat16."""
    return bool(set(kinds) & set(_FLAGS)) and not _BFLOAT16 & set(kinds)


def multiplies_int8(kinds: Collection[str]) -> bool:
    """Return whether 8-bit products are faster than float32 ones: not on x86 without VNNI."""
    return not set(kinds) & set(_FLAGS) or bool(_INT8 & set(kinds))


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model and the number of this machine's CPUs, for reports."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    count = os.cpu_count() or 0
    return f"{names[0] if names else platform.machine()}, {count} CPU{'s' * (count != 1)}"
