"""The flags of upstream's `trtllm-build` by release, and a reader of command lines.

The tables list flag, type and choices as upstream's parser has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.core.model import ModelConfig
from specpipe.engine.backend import BuildRequest
from tests.helpers.build_requests import build_request

_DATA = Path(__file__).parents[1] / "data"
TABLES = {"0.18.2": "trtllm_build_0.17.txt", "1.2.1": "trtllm_build_1x.txt"}

LLAMA_8B = ModelConfig(
    "LlamaForCausalLM", "bfloat16", 4096, 32, 32, 8, 128, 14336, 128256, 131072, 1e-5, 500000.0
)


@dataclass(frozen=True)
class Flag:
    """One flag of the parser."""

    kind: str  # int, str, or flag for one without a value
    choices: tuple[str, ...]


def known_flags(release: str) -> dict[str, Flag]:
    """Return the flags of a release by name."""
    flags = {}
    for line in (_DATA / TABLES[release]).read_text().splitlines():
        names, kind, *choices = line.split()
        for name in names.split(","):
            flags[name] = Flag(kind, tuple(choices[0].split("|")) if choices else ())
    return flags


def parse(argv: Sequence[str], release: str) -> dict[str, str | bool]:
    """Read a command line as `trtllm-build` would; raises AssertionError where it would stop."""
    assert argv[0] == "trtllm-build"
    known, values, rest = known_flags(release), {}, list(argv[1:])
    while rest:
        name = rest.pop(0)
        assert name in known, f"{name} is no flag of {release}"
        assert name not in values, f"{name} is given twice"
        flag = known[name]
        if flag.kind == "flag":
            values[name] = True
            continue
        value = rest.pop(0)
        assert flag.kind != "int" or value.isdigit(), f"{name} {value} is not a number"
        assert not flag.choices or value in flag.choices, f"{name} {value}: not in {flag.choices}"
        values[name] = value
    return values


def request(**changes: object) -> BuildRequest:
    """Return a request for a Llama-3.1-8B engine on one H100, changed as asked."""
    values: dict[str, object] = {
        "model": LLAMA_8B, "dtype": "bfloat16", "max_batch_size": 8, "max_input_len": 1024,
        "max_seq_len": 2048, "gpu": "H100-SXM", "sm": 90, **changes,
    }  # fmt: skip
    return build_request(**values)  # type: ignore[arg-type]
