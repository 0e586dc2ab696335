"""The adapter of llguidance: with a real tokenizer, and the traps that its guards are for."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from specpipe.config.speculation import Medusa, NoSpeculation
from specpipe.core.contracts import Sampling
from specpipe.core.engines import EngineFacts
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.guide import Guide, GuideKind
from specpipe.runtime.assembly import make_proposer
from specpipe.runtime.grammars import Compiler, Grammars, compiler_of, no_compiler
from specpipe.runtime.tokens import TextTokenizer
from specpipe.speculate.constrained import Constraint
from specpipe.speculate.decode import Limits, decode
from tests.helpers.scripted_model import ScriptedModel, random_distribution, run

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(tokenizer: TextTokenizer) -> Compiler:
    return compiler_of(tokenizer, tokenizer.vocab_size)


@pytest.fixture(scope="module")
def grammars(compiler: Compiler) -> Grammars:
    return Grammars(lambda: compiler)


def guide(kind: GuideKind, value: object = "") -> Guide:
    return Guide(kind, value if isinstance(value, str) else json.dumps(value))


def accepted(constraint: Constraint, ids: Sequence[int], end: int) -> bool:
    """Tell whether an answer may be these tokens and then end."""
    return all(constraint.permits(ids[:n], ids[n]) for n in range(len(ids))) and (
        constraint.permits(ids, end) or constraint.is_complete(ids)
    )


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        (guide("json"), ["[1, null]", '{"a": {}}', '"é"'], ["{a: 1}", "[1,"]),
        (guide("json_schema", SCHEMA), ['{"name": "Ann", "age": 3}', '{\n  "name":"","age":-1\n}'],
         ['{"age": 3, "name": ""}', '{"name": "Annabella", "age": 3}', '{"name":"a","age":"3"}']),
        (guide("regex", r"\d{2}/[a-c]+"), ["12/abc", "00/a"], ["1/a", "12/", "12/d", "٣٣/a"]),
        (guide("regex", '\\w"/\n\\/[é/]'), ['a"/\n/é', 'a"/\n//'], ['é"/\n//', 'a"/n//']),
        (guide("regex", "a|b/|"), ["a", "b/", ""], ["b", "ab/"]),
        (guide("ebnf_grammar", 'root ::= "x" ("," "x")*'), ["x", "x,x,x"], ["", "x,", "y"]),
        (guide("ebnf_grammar", 'start: "x" ("," "x")*'), ["x", "x,x,x"], ["", "x,", "y"]),
    ],
)  # fmt: skip
def test_every_kind_of_guide_permits_its_texts(
    grammars: Grammars, tokenizer: TextTokenizer, asked: Guide, good: list[str], bad: list[str]
) -> None:
    def fits(text: str) -> bool:
        ids = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        return accepted(grammars.constraint(asked, tokenizer.end_ids), ids, tokenizer.end_ids[0])

    assert [text for text in good if not fits(text)] == []
    assert [text for text in bad if fits(text)] == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (guide("json_schema", "{1"), "the JSON schema cannot be used: key must be a string"),
        (guide("json_schema", {"not": {}}), r'schema cannot be used: Unimplemented keys: \["n'),
        (guide("json_schema", {"$ref": "http://x.invalid/y"}), "retrieving it failed"),
        (guide("regex", "a("), "the regular expression cannot be used: error: unclosed group"),
        (guide("regex", "(?=a)"), "look-around, including look-ahead and look-behind, is not"),
        (guide("ebnf_grammar", 'root ::= "a'), "the grammar cannot be used"),
        (guide("ebnf_grammar", "start: y"), 'unknown name: "y"'),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_in_a_sentence(
    grammars: Grammars, asked: Guide, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        grammars.check(asked)
    assert "\n" not in str(refused.value)


def test_without_a_tokenizer_every_guide_is_refused() -> None:
    with pytest.raises(Unsupported, match="has no tokenizer"):
        Grammars(no_compiler).check(guide("json"))


def test_a_tokenizer_that_llguidance_cannot_read_is_refused(tokenizer: TextTokenizer) -> None:
    class Damaged:
        end_ids = (0,)

        @property
        def tokenizer(self) -> Any:
            return self

        def get_vocab_size(self) -> int:
            return 5

        def to_str(self) -> str:
            return "{}"

    with pytest.raises(Unsupported, match="llguidance cannot read the tokenizer"):
        compiler_of(Damaged(), 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [70, -30])
def test_special_tokens_and_rows_without_a_token_are_never_permitted(
    more: int, tokenizer: TextTokenizer
) -> None:
    rows = tokenizer.vocab_size + more
    grammars = Grammars(lambda: compiler_of(tokenizer, rows))
    mask = grammars.constraint(guide("regex", "(?s).*"), tokenizer.end_ids).mask(())
    assert mask is not None and len(mask) == rows
    letters = [tokenizer.tokenizer.token_to_id(letter) for letter in "abcxyz"]
    special = [tokenizer.tokenizer.token_to_id(f"<|{name}|>") for name in ("user", "assistant")]
    assert mask[letters].all() and mask[tokenizer.end_ids[0]]
    assert not mask[special].any() and not mask[tokenizer.vocab_size :].any()


def test_no_mask_is_stale(grammars: Grammars, tokenizer: TextTokenizer) -> None:
    """A matcher that rolled back a masked branch may permit too much; this walk uses copies.

    Every mask is compared with that of a matcher that replays the history of its node.
    """
    lark = 'start: e\ne: t (" " /[+*]/ " " t)*\nt: /[0-9]+/ | "(" e ")"\n'
    end, draw = tokenizer.end_ids[0], random.Random(3)
    walked = grammars.constraint(guide("ebnf_grammar", lark), (end,))
    committed: list[int] = []
    for _ in range(12):
        paths: list[tuple[int, ...]] = [()]
        for path in paths:
            mask = walked.mask(path)
            assert mask is not None
            fresh = grammars.constraint(guide("ebnf_grammar", lark), (end,))
            again = fresh.mask([*committed, *path])
            assert again is not None and (again == mask).all(), (committed, path)
            mask[end] = False
            fitting = np.flatnonzero(mask).tolist()
            if len(path) < 3:
                paths += [(*path, token) for token in draw.sample(fitting, min(2, len(fitting)))]
        longest = paths[-1]
        walked.commit(longest)
        committed += longest


# --- random schemas -----------------------------------------------------------------------------


def some_schema(draw: random.Random, depth: int = 2) -> dict[str, Any]:
    kind = draw.choice(["string", "integer", "boolean", "enum", "array", "object"][: 4 + depth])
    if kind == "enum":
        return {"enum": draw.sample(["red", "blue", 7, None, True], 2)}
    if kind == "array":
        items = some_schema(draw, depth - 1)
        return {"type": "array", "items": items, "minItems": 1, "maxItems": 2}
    if kind == "object":
        keys = draw.sample(["a", "bc", "d e"], draw.randint(1, 3))
        properties = {key: some_schema(draw, depth - 1) for key in keys}
        required = draw.sample(keys, draw.randint(0, len(keys)))
        return {"type": "object", "properties": properties, "required": required,
                "additionalProperties": False}  # fmt: skip
    bounds = {"string": {"maxLength": 4}, "integer": {"minimum": -20, "maximum": 300}}
    return {"type": kind, **bounds.get(kind, {})}


@pytest.mark.parametrize("seed", range(8))
def test_answers_to_random_schemas_are_equal_to_plain_decoding_and_valid(
    seed: int, grammars: Grammars, tokenizer: TextTokenizer
) -> None:
    draw = random.Random(seed)
    schema = some_schema(draw)
    facts = {"target": EngineFacts(tokenizer.vocab_size, 10_000)}
    model = ScriptedModel(random_distribution(tokenizer.vocab_size, seed))
    sampling = Sampling(top_k=0, seed=seed, end_ids=tokenizer.end_ids, temperature=0.6)
    answers = []
    for options in (None, Medusa("medusa", "unused", 8, "dynamic")):
        constraint = grammars.constraint(guide("json_schema", schema), tokenizer.end_ids)
        proposer = make_proposer(options or NoSpeculation(), facts)
        steps = run(
            decode(proposer, [5, 6, 7], sampling, Limits(120), constraint=constraint),
            {"target": model},
        )
        answers.append([token for step in steps for token in step.tokens])
        assert steps[-1].finish in ("grammar", "end_id", "length")
    assert answers[0] == answers[1]
    if steps[-1].finish != "length":
        value = json.loads(tokenizer.decode_answer(answers[0]))
        assert is_valid(value, schema), (value, schema)


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Judge a value by the few keywords of `some_schema`."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "array":
        return 1 <= len(value) <= 2 and all(is_valid(item, schema["items"]) for item in value)
    if kind == "object":
        known = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(known) and all(
            is_valid(item, known[key]) for key, item in value.items()
        )
    if kind == "string":
        return isinstance(value, str) and len(value) <= 4
    if kind == "integer":
        return type(value) is int and -20 <= value <= 300
    return isinstance(value, bool)
