"""The prompts of a validation as the server's users send them, and as tokens."""

from dataclasses import dataclass
from pathlib import Path

from specpipe.config.files import require_file
from specpipe.config.run_config import RunConfig
from specpipe.core.conversation import Conversation
from specpipe.core.endpoint import Endpoint
from specpipe.core.errors import ConfigError
from specpipe.core.prompts import read_prompts
from specpipe.runtime.tokens import TextTokenizer, load_tokenizer


@dataclass(frozen=True)
class Question:
    """One prompt as a user sends it: a message, or a text to a model without a chat template."""

    prompt: str | Conversation
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Questions:
    """All prompts of a run, and the tokenizer that made tokens of them."""

    asked: tuple[Question, ...]
    tokenizer: TextTokenizer

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the tokens that end an answer."""
        return self.tokenizer.end_ids

    def count(self, text: str) -> int:
        """Count the tokens of an answer, for servers that do not report them."""
        return len(self.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids)


def load_questions(config: RunConfig, tokenizer_folder: Path) -> Questions:
    """Return the run's prompts. Raises ConfigError if there are none or one is too long."""
    options = config.validate
    path = require_file(options.prompts, config, "validate.prompts") if options.prompts else None
    tokenizer = load_tokenizer(tokenizer_folder)
    limit = min(config.engine.max_input_len, config.engine.max_seq_len - options.max_tokens)
    if limit < 1:
        raise ConfigError(
            f"{config.path}: 'validate.max_tokens' is {options.max_tokens}: leaves no "
            f"room for a prompt in engine.max_seq_len {config.engine.max_seq_len}"
        )
    asked = []
    for number, text in enumerate(read_prompts(path)[: options.num_prompts], 1):
        prompt = text if tokenizer.template is None else Conversation.of(text)
        try:
            asked.append(Question(prompt, tuple(tokenizer.encode_prompt(prompt, limit))))
        except ConfigError as error:
            place = f"prompt {number} of {path or 'those that come with specpipe'}"
            raise ConfigError(
                f"{place}: {error}",
                hint="shorten it, or raise engine.max_input_len and max_seq_len and build again",
            ) from error
    return Questions(tuple(asked), tokenizer)


def load_prompts(
    config: RunConfig, tokenizer_folder: Path
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Return the run's prompts as tokens, in the chat template, and the end tokens.

    Raises what `load_questions` raises.
    """
    questions = load_questions(config, tokenizer_folder)
    return [list(question.tokens) for question in questions.asked], questions.end_ids


def tokenizer_folder(repository: Path, endpoint: Endpoint) -> Path:
    """Return where the tokenizer of a repository lies; raises ConfigError if it has none."""
    if not endpoint.tokenizer:
        raise ConfigError(
            f"{repository} has no tokenizer, without which answers cannot be compared",
            hint="package it again where the model's tokenizer is on the disk",
        )
    return repository / endpoint.tokenizer
