"""Converts a tokenizer.model of sentencepiece to a tokenizer.json, and compares the two.

The file decides: pieces, scores, normalisation and the space before a text are those of the model.
The types of pieces and the two algorithms are defined in sentencepiece's
`src/sentencepiece_model.proto`, `src/bpe_model.cc` and `src/unigram_model.cc`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from specpipe.checkpoint.sentencepiece_file import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    SentencePiece,
    SentencePieceModel,
    parse_model,
)
from specpipe.core.errors import ConfigError, Unsupported

SENTENCEPIECE = "tokenizer.model"
_SPACE = "\u2581"

# Code, digits, several scripts, marks of their own, spaces and line breaks.
CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x ** 2  # 3.14159, 1234567890, 0x1F\n",
    "for (int i = 0; i < 10; ++i) {\n\tsum += a[i];\n}\n\n\n",
    "Grüße aus München: ÄÖÜ ß, naïve café, Ελληνικά, Русский, עברית, العربية, हिन्दी, ไทย",
    "東京 は 日本 の 首都。 你好,世界! 안녕하세요",
    "🦊🦊 👩‍👩‍👧‍👦 🇩🇪 e\u0301 \ufb01 ½ ™ ①",
    "  two  spaces,   three   spaces  ",
    " leading",
    "\ttab\r\nline",
    "don't I'll we've 'quoted' \"double\" a_b_c CamelCase https://example.org/?q=1&r=2",
    "0123456789 1,000,000.00 -5 +7 1e-9 10:30 2026-01-31",
    '{"key": [1, 2.5, null, true], \'x\': "\\n"}',
)


def convert_sentencepiece(file: Path, settings: Mapping[str, Any]) -> bytes:
    """Return the tokenizer.json of a tokenizer.model; `settings`: those of tokenizer_config.json.

    Raises Unsupported without sentencepiece or for a model that is neither BPE nor unigram,
    ConfigError if the file is none of sentencepiece's, or if a text of `CORPUS` gets other tokens.
    """
    content = file.read_bytes()
    model = _parse(content, file)
    legacy = settings.get("legacy") is not False
    tokenizer = _tokenizer(model, file, legacy=legacy)
    _add_tokens(tokenizer, model)
    _compare(tokenizer, content, file, CORPUS if legacy else [t for t in CORPUS if t[0] != " "])
    _add_begin(tokenizer, model, settings)
    made: str = tokenizer.to_str(pretty=True)
    return made.encode()


def _parse(content: bytes, file: Path) -> SentencePieceModel:
    try:
        return parse_model(content)
    except ValueError as error:
        raise ConfigError(
            f"{file}: no usable tokenizer: the file is no model of sentencepiece: {error}",
            hint="fetch the model's tokenizer.json into the folder; Llama 3's tokenizer.model, for "
            "example, is of tiktoken",
        ) from error


def _tokenizer(model: SentencePieceModel, file: Path, *, legacy: bool) -> Tokenizer:
    """Return the tokenizer without added tokens.

    `legacy`: a text after a special token begins with a space, as transformers has it unless
    tokenizer_config.json sets "legacy" to false.
    """
    tokenizer = Tokenizer(_algorithm(model, file))
    prepends = model.add_dummy_prefix
    steps = list(_normalizing(model))
    if legacy:
        steps += [normalizers.Prepend(_SPACE)] if prepends else []
        steps += [normalizers.Replace(" ", _SPACE)]
    else:
        scheme = "first" if prepends else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, scheme, split=False)
    tokenizer.normalizer = normalizers.Sequence(steps) if steps else None
    tokenizer.decoder = decoders.Sequence(list(_decoding(model, strips=prepends)))
    return tokenizer


def _algorithm(model: SentencePieceModel, file: Path) -> Any:
    pieces = model.pieces
    if model.model_type == BPE:
        vocabulary = {piece.content: number for number, piece in enumerate(pieces)}
        return models.BPE(
            vocabulary,
            list(_merges(pieces)),
            unk_token=pieces[model.unk_id].content,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    if model.model_type == UNIGRAM:
        scored = [(piece.content, piece.score) for piece in pieces]
        return models.Unigram(scored, model.unk_id, model.byte_fallback)
    raise Unsupported(
        f"{file}: a sentencepiece model of type {model.model_type}, neither unigram nor BPE",
        hint="fetch the model's tokenizer.json into the folder",
    )


def _merges(pieces: Sequence[SentencePiece]) -> Iterator[tuple[str, str]]:
    """Yield the pairs that BPE joins, the best score first; of equal pairs the shorter left part.

    sentencepiece joins the two neighbours whose joined text is the piece with the best score.
    """
    normal = {piece.content: piece.score for piece in pieces if piece.type == NORMAL}
    order = {content: number for number, content in enumerate(normal)}
    found = [
        (-score, order[content], cut, content)
        for content, score in normal.items()
        for cut in range(1, len(content))
        if content[:cut] in normal and content[cut:] in normal
    ]
    for _, _, cut, content in sorted(found):
        yield content[:cut], content[cut:]


def _normalizing(model: SentencePieceModel) -> Iterator[Any]:
    if model.precompiled_charsmap:
        yield normalizers.Precompiled(model.precompiled_charsmap)
    if model.remove_extra_whitespaces:
        yield normalizers.Replace(Regex("^ +| +$"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")


def _decoding(model: SentencePieceModel, *, strips: bool) -> Iterator[Any]:
    yield decoders.Replace(_SPACE, " ")
    if model.byte_fallback:
        yield decoders.ByteFallback()
    yield decoders.Fuse()
    if strips:
        yield decoders.Strip(" ", 1, 0)


def _compare(tokenizer: Tokenizer, content: bytes, file: Path, texts: Sequence[str]) -> None:
    """Raise ConfigError for the first text that sentencepiece gives other tokens."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise Unsupported(
            f"{file} is converted and compared with sentencepiece, which is not installed",
            hint="in a clone of specpipe: pip install -e '.[sentencepiece]', or fetch the model's "
            "tokenizer.json",
        ) from error
    judge = SentencePieceProcessor(model_proto=content)
    for text in texts:
        ours, theirs = tokenizer.encode(text, add_special_tokens=False).ids, judge.encode(text)
        if ours != theirs:
            raise ConfigError(
                f"{file}: no usable tokenizer: as tokenizer.json it gives {text!r} the tokens "
                f"{ours[:20]}, sentencepiece {theirs[:20]}",
                hint="fetch the model's tokenizer.json into the folder",
            )


def _add_tokens(tokenizer: Tokenizer, model: SentencePieceModel) -> None:
    """Mark control symbols and the unknown token as special; those of the user are kept whole."""
    for piece in model.pieces:
        if piece.type in (UNKNOWN, CONTROL):
            token = AddedToken(piece.content, normalized=False, special=True)
            tokenizer.add_special_tokens([token])
        elif piece.type == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(piece.content, normalized=_SPACE in piece.content)])


def _add_begin(
    tokenizer: Tokenizer, model: SentencePieceModel, settings: Mapping[str, Any]
) -> None:
    """Begin every text with the model's first token, unless tokenizer_config.json forbids it."""
    number = model.bos_id
    if number < 0 or settings.get("add_bos_token") is False:
        return
    begin = model.pieces[number].content
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["BEGIN:0", "$A:0"],
        pair=["BEGIN:0", "$A:0", "BEGIN:1", "$B:1"],
        special_tokens=[{"id": "BEGIN", "ids": [number], "tokens": [begin]}],
    )
