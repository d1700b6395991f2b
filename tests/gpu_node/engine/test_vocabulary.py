"""A tokenizer of transformers, as the engine sees it."""

from __future__ import annotations

import pytest

from gpu_node.engine.sequence import Message
from gpu_node.engine.vocabulary import TokenizerVocabulary
from gpu_node.errors import RequestError
from tests.fakes.tiny_model import tiny_tokenizer


def vocabulary(**changes: object) -> TokenizerVocabulary:
    tokenizer = tiny_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return TokenizerVocabulary(tokenizer, frozenset({2}))


def with_bos() -> TokenizerVocabulary:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return TokenizerVocabulary(tokenizer, frozenset({2}))


def test_text_goes_there_and_back() -> None:
    words = vocabulary()
    for text in ("the quick brown fox", "zażółć 😀", " leading space", ""):
        assert words.decode(words.encode(text)) == text


def test_special_words_are_tokens_and_show_no_text() -> None:
    words = vocabulary()
    assert words.encode("<|im_end|>") == [2]
    assert words.decode([*words.encode("end"), 2]) == "end"


def test_a_bos_token_comes_once_whether_the_text_names_it_or_not() -> None:
    words = with_bos()
    assert words.begins_with_bos
    assert words.encode("fox")[0] == 1
    assert words.encode("<|im_start|>fox") == words.encode("fox")
    assert not vocabulary().begins_with_bos
    assert 1 not in vocabulary().encode("fox")


def test_the_template_renders_up_to_the_assistants_turn() -> None:
    text = vocabulary().render([Message("system", "S"), Message("wizard", "hi")])
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>wizard\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_refuses_is_the_clients_mistake() -> None:
    strict = vocabulary(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        strict.render([Message("user", "a")])


def test_without_a_template_the_texts_stand_alone() -> None:
    assert vocabulary(chat_template=None).render([Message("system", "S"), Message("user", "U")]) == "S\n\nU"


def test_size_covers_every_token() -> None:
    words = vocabulary()
    assert max(words.encode("the quick 😀<|im_end|>")) < words.size
