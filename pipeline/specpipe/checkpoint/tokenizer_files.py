"""Opens the tokenizer of a source: its tokenizer.json as it is, else one made of older files.

transformers 5 replaces normalizer and pre-tokenizer of a tokenizer.json by those of the class that
tokenizer_config.json names, transformers 4 keeps them. The generic class keeps them in both.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from specpipe.checkpoint.gguf.tokenizer import load_gguf_tokenizer
from specpipe.checkpoint.plain_files import read_json
from specpipe.checkpoint.sentencepiece_model import SENTENCEPIECE, convert_sentencepiece
from specpipe.checkpoint.source import BEFORE_TOKENIZER_JSON, Source
from specpipe.core.errors import ConfigError, SpecpipeError
from specpipe.core.tokenizer import FILE, Additions, ExtraToken, extend, read_tokenizer_json

_CONFIG = "tokenizer_config.json"
_NEIGHBOURS = (_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template*")
_OTHER_FORMS = ("tekken.json", "*.tiktoken", "tiktoken.model", "spiece.model", "*.bpe.model")
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer of a source."""

    content: bytes  # of tokenizer.json: the source's own, if it has one that transformers keeps
    additions: Additions  # by the files next to it
    tokenizer: Tokenizer  # both together
    reader: Any  # of transformers, over the same files: special tokens by name, chat template


def open_tokenizer(source: Source) -> TokenizerFiles:
    """Read the tokenizer of a source.

    Raises ConfigError if there is none, if it is damaged, or if a part of it is missing;
    Unsupported without the package that reads it.
    """
    folder = source.path
    if folder.is_file():
        return _by_transformers(load_gguf_tokenizer, folder)
    if (folder / FILE).is_file():
        return _with_neighbours(_read(folder / FILE), folder, folder)
    if (folder / SENTENCEPIECE).is_file():
        return _of_sentencepiece(folder)
    if all((folder / name).is_file() for name in BEFORE_TOKENIZER_JSON):
        return _of_vocabulary(folder)
    raise _absent(folder)


def has_tokenizer_json(source: Source) -> bool:
    """Tell whether a source has a tokenizer.json, which needs no conversion."""
    return source.path.is_dir() and (source.path / FILE).is_file()


def parse_tokenizer(source: Source) -> Tokenizer:
    """Return the tokenizer.json of a source, without what the files next to it add."""
    file = source.path / FILE
    return _parsed(_read(file), file)


def _read(file: Path) -> bytes:
    content = file.read_bytes()
    if content.startswith(_POINTER):
        raise ConfigError(
            f"{file}: no usable tokenizer: the file is a pointer of git-lfs",
            hint="run `git lfs pull` in the folder",
        )
    return content


def _parsed(content: bytes, file: Path) -> Tokenizer:
    try:
        return read_tokenizer_json(content)
    except ValueError as error:
        raise _unusable(file, error) from error


def _with_neighbours(
    content: bytes, folder: Path, named: Path, *, converted: bool = False
) -> TokenizerFiles:
    """Read a tokenizer.json that lies in `folder`; errors name the folder `named`.

    Flags about the tokens around a text count for a file that was converted. One that the source
    has decides itself, as in transformers 5, and in 4 for most classes.
    """
    tokenizer, settings = _parsed(content, named / FILE), _settings(folder)
    reader = _load(_generic, folder, named)
    if settings.get("fix_mistral_regex") is True:
        content = _with_rule_of(reader, content)
        tokenizer = _parsed(content, named / FILE)
    additions = _additions(tokenizer, reader, settings if converted else {})
    return TokenizerFiles(content, additions, extend(tokenizer, additions), reader)


def _with_rule_of(reader: Any, content: bytes) -> bytes:
    """Return a tokenizer.json that splits text as transformers does after it replaced that rule.

    It does so if the flag `fix_mistral_regex` is set, and only for the models that it recognises.
    """
    values = json.loads(content)
    rule = json.loads(reader.backend_tokenizer.to_str())["pre_tokenizer"]
    if values.get("pre_tokenizer") == rule:
        return content
    return json.dumps({**values, "pre_tokenizer": rule}, ensure_ascii=False).encode()


def _settings(folder: Path) -> Mapping[str, Any]:
    file = folder / _CONFIG
    return read_json(file) if file.is_file() else {}


def _additions(tokenizer: Tokenizer, reader: Any, flags: Mapping[str, Any]) -> Additions:
    """Return what transformers adds to the file: tokens, and by `flags` tokens around a text."""
    known = tokenizer.get_added_tokens_decoder()
    theirs = sorted(reader.added_tokens_decoder.items())
    tokens = tuple(_extra(token) for number, token in theirs if number not in known)
    own = _around(tokenizer)
    wanted = (
        _asked(flags.get("add_bos_token"), reader.bos_token_id, own[0]),
        _asked(flags.get("add_eos_token"), reader.eos_token_id, own[1]),
    )
    around = None if wanted == own else wanted
    return Additions(tokens, around, bool(reader.split_special_tokens))


def _extra(token: Any) -> ExtraToken:
    flags = (token.special, token.normalized, token.lstrip, token.rstrip, token.single_word)
    return ExtraToken(token.content, *flags)


def _asked(flag: object, token: int | None, own: tuple[int, ...]) -> tuple[int, ...]:
    """Return the ids at one end of a text; without a flag those of tokenizer.json."""
    if not isinstance(flag, bool):
        return own
    return (token,) if flag and token is not None else ()


def _around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a tokenizer puts before and after a text."""
    whole, plain = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    for begin in range(len(whole) - len(plain) + 1):
        if whole[begin : begin + len(plain)] == plain:
            return tuple(whole[:begin]), tuple(whole[begin + len(plain) :])
    return (), ()


def _of_sentencepiece(folder: Path) -> TokenizerFiles:
    """Convert tokenizer.model, and read it with the other files of its folder."""
    content = convert_sentencepiece(folder / SENTENCEPIECE, _settings(folder))
    with tempfile.TemporaryDirectory() as place:
        for name in _NEIGHBOURS:
            for file in folder.glob(name):
                if file.is_file():
                    shutil.copyfile(file, Path(place) / file.name)
        (Path(place) / FILE).write_bytes(content)
        return _with_neighbours(content, Path(place), folder, converted=True)


def _of_vocabulary(folder: Path) -> TokenizerFiles:
    """Let transformers make a tokenizer.json of vocab.json and merges.txt.

    Only the class that tokenizer_config.json or config.json names has the rules. Raises ConfigError
    if a token has another id than in vocab.json, or is in no file.
    """
    made = _by_transformers(_by_class, folder)
    vocabulary, tokens = read_json(folder / BEFORE_TOKENIZER_JSON[0]), made.tokenizer.get_vocab()
    wrong = next((token for token, number in vocabulary.items() if tokens.get(token) != number), "")
    if wrong:
        raise ConfigError(
            f"{folder}: no usable tokenizer: transformers gives {wrong!r} the id "
            f"{tokens.get(wrong)}, vocab.json {vocabulary[wrong]}",
            hint=f"fetch the model's {FILE}",
        )
    named = {*vocabulary, *_strings([read_json(file) for file in folder.glob("*token*.json")])}
    invented = sorted(tokens.keys() - named, key=lambda token: tokens[token])
    if invented:
        raise ConfigError(
            f"{folder}: no usable tokenizer: transformers would add {invented[0]!r}, which is in "
            "no file of the folder",
            hint=f"fetch the model's {FILE}, or the {_CONFIG} that belongs to vocab.json",
        )
    return made


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, the keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _by_transformers(load: Callable[[Path], Any], place: Path) -> TokenizerFiles:
    """Return what transformers makes of the older files of a folder, or of a .gguf file."""
    reader = _load(load, place, place)
    content: bytes = reader.backend_tokenizer.to_str(pretty=True).encode()
    additions = Additions(splits_special=bool(reader.split_special_tokens))
    tokenizer = extend(_parsed(content, place), additions)
    return TokenizerFiles(content, additions, tokenizer, reader)


def _by_class(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _generic(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _load(load: Callable[[Path], Any], folder: Path, named: Path) -> Any:
    try:
        with _quiet():
            return load(folder)
    except SpecpipeError:
        raise
    except Exception as error:  # transformers and tokenizers raise many kinds, and bare ones
        raise _unusable(named, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of transformers about classes: the files decide, not the class."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _unusable(place: Path, error: Exception) -> ConfigError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(
        f"{place}: no usable tokenizer: {first}",
        hint=f"fetch the model's {FILE} again, into the folder of config.json",
    )


def _absent(folder: Path) -> ConfigError:
    vocabulary, merges = BEFORE_TOKENIZER_JSON
    there = [name for name in BEFORE_TOKENIZER_JSON if (folder / name).is_file()]
    other = sorted(file.name for form in _OTHER_FORMS for file in folder.glob(form))
    if there:
        missing = merges if there == [vocabulary] else vocabulary
        reason = f"{there[0]} is there, and {missing} is missing"
    elif other:
        reason = f"specpipe does not read {other[0]}"
    else:
        reason = f"the folder has no {FILE}, no {SENTENCEPIECE}, and no {vocabulary} with {merges}"
    make = f"AutoTokenizer.from_pretrained({json.dumps(str(folder))}).save_pretrained(...)"
    return ConfigError(
        f"{folder}: no usable tokenizer: {reason}",
        hint=f"fetch the model's {FILE} into the folder"
        + (f", or write one with transformers: {make}" if other else ""),
    )
