import pytest
import typer

from potluck.cli.reports import advice_for, reporting, sentence
from potluck.errors import (
    AnswerCutShort,
    AnswerTimeout,
    GatewayUnreachable,
    KeyRefused,
    Misuse,
    ModelUnknown,
    NoNodes,
    QueueFull,
    UnexpectedAnswer,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Misuse("wrong"), 2),
        (GatewayUnreachable("gone", "http://x"), 1),
        (NoNodes("none"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code, capsys):
    with pytest.raises(typer.Exit) as caught, reporting():
        raise error
    assert caught.value.exit_code == code
    assert capsys.readouterr().out == ""


def test_an_error_is_one_sentence_and_a_hint_on_stderr(capsys):
    with pytest.raises(typer.Exit), reporting():
        raise ModelUnknown("model 'x\x1b[2J' not found", hint="did you mean y?")
    assert capsys.readouterr().err == "error: model 'x�[2J' not found.\n       Did you mean y?\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatewayUnreachable("gone", "http://x"), "potluck serve"),
        (KeyRefused("no key", code="unauthorized", hint="send a header"), "POTLUCK_API_KEY"),
        (KeyRefused("foreign host", code="forbidden", hint="allow it"), "Allow it."),
        (QueueFull("full", retry_after_seconds=7.0), "7 s"),
        (AnswerCutShort("cut", text="a"), "ask again"),
        (AnswerTimeout("silent"), "potluck status"),
        (UnexpectedAnswer("html"), "gateway"),
    ],
)
def test_advice(error, words):
    assert words in advice_for(error)


def test_no_advice_is_better_than_a_wrong_one():
    assert advice_for(QueueFull("full")) is None
    assert advice_for(NoNodes("none")) is None
    assert advice_for(NoNodes("none", hint="add a phone")) == "Add a phone."


def test_other_errors_are_not_hidden():
    with pytest.raises(KeyError), reporting():
        raise KeyError("a mistake of ours")


@pytest.mark.parametrize(("said", "written"), [("it broke", "it broke."), ("Really?", "Really?"), ("a\nb", "a b.")])
def test_sentences(said, written):
    assert sentence(said) == written
