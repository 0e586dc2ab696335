"""Check a guide before an engine gets it that other models call.

TensorRT-LLM compiles a guide between two steps of all its requests. An error there, or an end token
that its grammar takes and the engine does not, ends every request in flight (`forwardAsync` in
cpp/tensorrt_llm/executor/executorImpl.cpp, `GuidedDecoder::build`).
"""

import re
from typing import Any

from specpipe.core.errors import Unsupported
from specpipe.core.guide import Guide
from specpipe.runtime.exchange import Request
from specpipe.runtime.grammars import refusal

_PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")  # in xgrammar's own source, before a reason


def check(guide: Guide, request: Request, end_ids: tuple[int, ...], by: str) -> None:
    """Raise ConfigError or Unsupported for a guide that an engine cannot follow in this request.

    `end_ids` are the end tokens of the model, which the grammar knows. `by` is "xgrammar", or
    "engine" for an engine that checks guides itself.
    """
    if request.sampling.end_ids != end_ids:
        raise Unsupported(
            "end_id with a guide is not supported by this engine: the answer ends with the guide; "
            "leave end_id out"
        )
    if by == "xgrammar":
        _compile(guide)


def _compile(guide: Guide) -> None:
    """Let xgrammar read a guide; the container has the version that the engine has."""
    if guide.kind == "ebnf_grammar" and "::=" not in guide.text:
        raise Unsupported(
            "the grammar is not in GBNF, the one form that TensorRT-LLM takes: write it with `::=` "
            "and a rule root"
        )
    grammar = _grammar_class()
    known = {
        "json_schema": grammar.from_json_schema,
        "regex": grammar.from_regex,
        "ebnf_grammar": grammar.from_ebnf,
    }
    try:
        if guide.kind in known:
            known[guide.kind](guide.text)
    except Exception as error:  # RuntimeError, and classes of newer versions
        raise refusal(guide, _PLACE.sub("", str(error))) from error


def _grammar_class() -> Any:
    try:
        from xgrammar import Grammar
    except ModuleNotFoundError as error:
        raise Unsupported(
            "structured output needs the package xgrammar, as NVIDIA's container has it"
        ) from error
    return Grammar
