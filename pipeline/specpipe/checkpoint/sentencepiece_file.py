"""Reads the facts of a tokenizer.model from its bytes; needs neither sentencepiece nor protobuf.

sentencepiece's own Python module for this file works with few releases of protobuf. The numbers of
the fields are those of `src/sentencepiece_model.proto`, the encoding is protobuf's wire format.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # ModelProto.SentencePiece.Type
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # types on the wire
Fields = dict[int, list[int | bytes]]


@dataclass(frozen=True)
class SentencePiece:
    """A token: its text, its score, and what it is for."""

    content: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What decides the tokens of a text."""

    pieces: tuple[SentencePiece, ...]
    model_type: int
    byte_fallback: bool
    unk_id: int
    bos_id: int  # negative: none
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def parse_model(content: bytes) -> SentencePieceModel:
    """Return the model in the bytes of a tokenizer.model; raises ValueError if there is none."""
    whole = _fields(content)
    pieces = tuple(_piece(_fields(part)) for part in _messages(whole, 1))
    if not pieces:
        raise ValueError("no pieces")
    trainer, normalizer = (_fields(b"".join(_messages(whole, number))) for number in (2, 3))
    charsmap = normalizer.get(2, [b""])[-1]
    return SentencePieceModel(
        pieces=pieces,
        model_type=_number(trainer, 3, UNIGRAM),
        byte_fallback=bool(_number(trainer, 35, 0)),
        unk_id=_number(trainer, 40, 0),
        bos_id=_number(trainer, 41, 1),
        precompiled_charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        add_dummy_prefix=bool(_number(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
    )


def _piece(fields: Fields) -> SentencePiece:
    content, score = fields.get(1, [b""])[-1], fields.get(2, [bytes(4)])[-1]
    if not isinstance(content, bytes) or not isinstance(score, bytes):
        raise ValueError("a piece without text")
    return SentencePiece(
        content.decode("utf-8"), struct.unpack("<f", score)[0], _number(fields, 3, NORMAL)
    )


def _messages(fields: Fields, number: int) -> list[bytes]:
    return [part for part in fields.get(number, []) if isinstance(part, bytes)]


def _number(fields: Fields, number: int, default: int) -> int:
    """Return a number of 32 bits with its sign; the last one counts."""
    value = fields.get(number, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no number")
    return value - 2**64 if value >= 2**63 else value


def _fields(content: bytes) -> Fields:
    """Return the values of a message by the numbers of its fields."""
    found: Fields = {}
    for number, value in _walk(content):
        found.setdefault(number, []).append(value)
    return found


def _walk(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(content, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"type {kind} on the wire")
        if number == 0 or at + size > len(content):
            raise ValueError("the message is cut short")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a number, seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("the message is cut short")
        value |= (content[at] & 0x7F) << shift
        at += 1
        if not content[at - 1] & 0x80:
            return value, at
    raise ValueError("a number with too many bytes")
