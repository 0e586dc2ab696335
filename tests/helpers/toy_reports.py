"""Validation reports on served toy models."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from specpipe.config.run_config import read_config
from specpipe.config.validation import (
    ConcurrencyOptions,
    LongOptions,
    SampledOptions,
    ValidateOptions,
)
from specpipe.validate.questions import Question, Questions
from specpipe.validate.report import Report
from specpipe.validate.subject import Subject
from specpipe.validate.validate import validate
from tests.helpers.served_model import ServedModel, ToyReference, toy_tokenizer

PROMPTS = (
    "What is the capital of France", "Tell a story of a cat", "why is the sky blue",
    "Name three colours", "the quick brown fox", "count to ten", "Say Hello", "one two three",
)  # fmt: skip
OPTIONS = ValidateOptions(
    num_prompts=8, max_tokens=48,
    concurrency=ConcurrencyOptions((1, 3), (), requests=8, max_tokens=16),
    sampled=SampledOptions(seeds=24, num_prompts=3, max_tokens=4),
    long=LongOptions((150,), max_tokens=160, num_prompts=4),
)  # fmt: skip
RUN = read_config(Path("model_configs/smollm2-135m_prompt-lookup.yaml"))


def report_on(
    model: ServedModel, weights: Path, *scenarios: str, options: ValidateOptions = OPTIONS
) -> Report:
    """Validate a served model with some scenarios and the default gates.

    `weights` is a file from which transformers reads no tokenizer.
    """
    tokenizer = toy_tokenizer()
    asked = tuple(Question(text, tuple(tokenizer.encode(text, 99))) for text in PROMPTS)
    config = replace(RUN, validate=replace(options, scenarios=scenarios))
    subject = Subject(
        config, model.endpoint, weights, Questions(asked, tokenizer), {}, None, scenarios
    )
    return validate(
        subject, lambda: nullcontext(model), open_reference=ToyReference  # type: ignore[arg-type]
    )  # fmt: skip
