"""Whatever is chosen under the mask ends in an answer of the form that was asked for."""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.guide import MAX_CHARACTERS, GuidedAnswer, Guides, guides_of
from gpu_node.engine.sequence import JsonGuide, RegexGuide
from gpu_node.engine.vocabulary import TokenizerVocabulary
from gpu_node.errors import GenerationFailed, RequestError
from tests.fakes.tiny_model import tiny_tokenizer

END = 2
STEPS = 600
CLOSERS = ["}", "]", '"', ":", ",", "@", ".", "0", "t", "r", "e", "n", "u", "l"]


@functools.cache
def vocabulary() -> TokenizerVocabulary:
    return TokenizerVocabulary(tiny_tokenizer(), frozenset({0, END}))


@functools.cache
def guides() -> Guides:
    return Guides(vocabulary())


def json_guide(schema: Any) -> JsonGuide:
    return JsonGuide(json.dumps(schema))


def allowed(answer: GuidedAnswer) -> list[int]:
    mask = np.frombuffer(answer.mask(), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()


def accepts(answer: GuidedAnswer, text: str) -> bool:
    for token in vocabulary().encode(text):
        if answer.finished or token not in allowed(answer):
            return False
        answer.accept(token)
    return answer.finished or END in allowed(answer)


def walk(answer: GuidedAnswer, chance: random.Random, wild: int = 60) -> str:
    """Any token the mask allows, later such as bring the answer to its end; special tokens are never allowed."""
    closers = [vocabulary().encode(text)[0] for text in CLOSERS]
    quote, letter = vocabulary().encode('"')[0], vocabulary().encode("z")[0]  # both are open within strings alone
    written: list[int] = []
    for step in range(STEPS):
        if answer.finished:
            break
        tokens = allowed(answer)
        assert tokens, "there is always a way on"
        if END in tokens and (step >= wild or chance.random() < 0.2):
            break
        tokens = [token for token in tokens if token not in (0, END)]
        assert 1 not in tokens
        closing = [token for token in closers if token in tokens]
        if letter in tokens and quote in tokens:
            closing = [quote]
        tame = step >= wild or chance.random() < 0.5
        written.append(closing[0] if tame and closing else chance.choice(tokens))
        answer.accept(written[-1])
    else:
        raise AssertionError(f"no end: {vocabulary().decode(written)[:200]}")
    return vocabulary().decode(written)


SCHEMAS = {
    "any object": {"type": "object"},
    "anything": {},
    "flat": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 7, "maximum": 123}},
        "required": ["name", "age"],
    },
    "enum": {"properties": {"c": {"enum": ["red", 3, None, {"a": [1]}]}, "d": {"const": "x"}}, "required": ["c", "d"]},
    "nested": {
        "type": "object",
        "properties": {
            "p": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": "string", "maxLength": 5}},
                "required": ["x", "y"],
            },
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["tags", "p"],
        "additionalProperties": False,
    },
    "any of": {
        "type": "array",
        "minItems": 2,
        "maxItems": 4,
        "items": {"anyOf": [{"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"type": ["string", "array"]}]},
    },
    "recursive": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
            }
        },
        "$ref": "#/$defs/node",
    },
    "pattern and format": {
        "type": "object",
        "properties": {"d": {"type": "string", "format": "ipv4"}, "k": {"type": "string", "pattern": "^[a-c]{2,4}$"}},
        "required": ["d", "k"],
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
}


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_walks_end_in_json_that_the_schema_allows(name: str, seed: int) -> None:
    text = walk(guides().start(json_guide(SCHEMAS[name])), random.Random(seed))
    jsonschema.validate(json.loads(text), SCHEMAS[name], format_checker=jsonschema.FormatChecker())


LEAVES = st.sampled_from(
    [{"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"enum": ["a", "ab", 1]}, {"type": "string"}]
)
RANDOM_SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(1, 3)),
        st.builds(lambda choices: {"anyOf": choices}, st.lists(inner, min_size=1, max_size=3)),
        st.dictionaries(st.sampled_from(["a", "b", "format", 'q"']), inner, min_size=1, max_size=3).flatmap(
            lambda named: st.builds(
                lambda needed: {"type": "object", "properties": named, "required": sorted(needed)},
                st.frozensets(st.sampled_from(sorted(named))),
            )
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(RANDOM_SCHEMAS, st.integers(0, 2**32))
def test_random_schemas_are_followed(schema: dict, seed: int) -> None:
    text = walk(guides().start(json_guide(schema)), random.Random(seed))
    jsonschema.validate(json.loads(text), schema)


# Which characters \w and \d mean depends on the Unicode of each library.
@pytest.mark.parametrize("pattern", [r"[a-z]{3}-[0-9]+", "(yes|no)!?", r"^[a-z0-9]+@[a-z]\.com$", "a?b*c+"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_whole_answer_matches_the_pattern(pattern: str, seed: int) -> None:
    text = walk(guides().start(RegexGuide(pattern)), random.Random(seed))
    assert re.fullmatch(pattern, text)


def test_an_end_token_is_allowed_exactly_where_the_answer_may_end() -> None:
    answer = guides().start(RegexGuide("ab?"))
    assert not {0, END} & set(allowed(answer)) and not answer.finished
    answer.accept(vocabulary().encode("a")[0])
    assert {0, END} < set(allowed(answer)) and not answer.finished
    answer.accept(vocabulary().encode("b")[0])
    assert answer.finished


def test_an_object_that_is_closed_is_finished_without_an_end_token() -> None:
    answer = guides().start(JsonGuide())
    assert accepts(answer, '{"a": [1, {"b": null}]}')
    assert answer.finished


@pytest.mark.parametrize("text", ["[1]", "7", '"a"', "", "{", "{'a':1}", '{"a":}', '{"a" : 1} x'])
def test_any_object_is_an_object_and_json(text: str) -> None:
    assert not accepts(guides().start(JsonGuide()), text)


@pytest.mark.parametrize("text", ['{"a":1}', '{"a": 1}', '{\n  "a": 1\n}', '{ "a" : 1 }', '{\n\t"a": 1\n}'])
def test_the_usual_ways_to_lay_json_out_are_open(text: str) -> None:
    assert accepts(guides().start(json_guide({"properties": {"a": {"type": "integer"}}, "type": "object"})), text)


def test_blanks_without_end_are_not() -> None:
    assert not accepts(guides().start(JsonGuide()), '{   "a":1}')
    assert not accepts(guides().start(JsonGuide()), "{" + "\n" * 5 + '"a":1}')


def test_characters_of_several_tokens_are_open_and_half_of_one_is_no_answer() -> None:
    assert accepts(guides().start(json_guide({"type": "string"})), '"zażółć 日本 😀"')
    answer = guides().start(RegexGuide("😀"))
    assert len(vocabulary().encode("😀")) > 1 or allowed(answer) == vocabulary().encode("😀")
    assert walk(answer, random.Random(1)) == "😀"


def test_two_answers_to_one_guide_go_their_own_ways() -> None:
    first, second = (guides().start(RegexGuide("abc|xyz")) for _ in range(2))
    first.accept(vocabulary().encode("a")[0])
    assert accepts(second, "xyz")
    assert accepts(first, "bc")


def test_a_mask_has_a_bit_for_every_token() -> None:
    assert len(guides().start(JsonGuide()).mask()) * 8 >= vocabulary().size


@pytest.mark.parametrize(
    ("guide", "reason"),
    [
        (JsonGuide("{"), "not JSON"),
        (JsonGuide("[]"), "must be a JSON object"),
        (JsonGuide("3"), "must be a JSON object"),
        (JsonGuide('{"const": NaN}'), "not JSON"),
        (JsonGuide("[" * 100_000), "nested too deeply"),
        (json_guide({"type": "wizard"}), "wizard"),
        (json_guide({"not": {"type": "string"}}), "not"),
        (json_guide({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (json_guide({"$ref": "http://127.0.0.1/schema"}), "127.0.0.1"),
        (json_guide({"$ref": "#/$defs/absent"}), "absent"),
        (json_guide({"allOf": [False]}), "schema is false"),
        (json_guide({"description": "x" * MAX_CHARACTERS}), "longer than"),
        (RegexGuide("("), "unclosed group"),
        (RegexGuide(r"(?=a)b"), "look-around"),
        (RegexGuide("a" * (MAX_CHARACTERS + 1)), "longer than"),
        (RegexGuide(r"[^\s\S]"), "nothing can satisfy"),
        (json_guide({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "nothing can satisfy"),
        (JsonGuide('{"type": "array", "items": ' * 200 + "{}" + "}" * 200), "cannot be followed: recursion limit"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_one_sentence(guide: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=re.escape(reason)) as caught:
        guides().start(guide)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_nest_of_lists_is_refused_or_followed_but_never_the_end_of_the_process() -> None:
    schema: dict = {"type": "integer"}
    for _ in range(120):
        schema = {"type": "array", "items": schema}
    assert accepts(guides().start(json_guide(schema)), "[" * 120 + "]" * 120)
    text = '{"type": "array", "items": ' * 2000 + "{}" + "}" * 2000
    with pytest.raises(RequestError, match="deep"):
        guides().start(JsonGuide(text))


def test_a_token_that_the_mask_forbids_breaks_the_answer() -> None:
    answer = guides().start(JsonGuide())
    with pytest.raises(GenerationFailed):
        answer.accept(vocabulary().encode("x")[0])
    with pytest.raises(GenerationFailed):
        answer.mask()


def test_more_guides_than_are_kept_are_still_right() -> None:
    for number in [*range(40), *range(40)]:
        assert accepts(guides().start(RegexGuide(f"a{number}")), f"a{number}")


def test_a_vocabulary_that_cannot_be_spelled_cannot_be_guided() -> None:
    class Mute:
        size, end_ids = 10, frozenset({0})

    with pytest.raises(RequestError, match="does not spell"):
        guides_of(SimpleNamespace(vocabulary=Mute()))

    class Odd(Mute):
        def tokenizer_json(self) -> str:
            return '{"model": {}}'

    with pytest.raises(RequestError, match="this model's tokenizer"):
        guides_of(SimpleNamespace(vocabulary=Odd()))


def test_tokenizers_that_write_spaces_as_underlines_are_spelled_too() -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", '"', "{", "}", ":", "▁a", "a"]
    model = models.BPE(
        {piece: at for at, piece in enumerate(pieces)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])

    class Words:
        size, end_ids = len(pieces), frozenset({2})

        def tokenizer_json(self) -> str:
            return tokenizer.to_str()

    answer = guides_of(SimpleNamespace(vocabulary=Words()))(RegexGuide('" a"'))
    for piece in ('"', "▁a", '"'):
        assert pieces.index(piece) in allowed(answer)
        answer.accept(pieces.index(piece))
    assert answer.finished
    other = guides_of(SimpleNamespace(vocabulary=Words()))(RegexGuide("é"))
    for byte in "é".encode():
        other.accept(pieces.index(f"<0x{byte:02X}>"))
    assert other.finished


def test_the_library_is_not_imported_before_a_guide_is_asked_for() -> None:
    code = "import gpu_node.engine.guide, sys; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
