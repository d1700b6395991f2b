import json

import pytest

from potluck.cli.conversation import Conversation, Lines, Order, Say


def read(*lines):
    reader = Lines()
    meanings = [reader.receive(line) for line in lines]
    assert not reader.inside
    return [meaning for meaning in meanings if meaning is not None]


def test_lines_are_messages_or_orders():
    assert read("Hello ", "", "  ", "/model qwen2.5:0.5b", "/BYE", "/system  be brief  ") == [
        Say("Hello"),
        Order("model", "qwen2.5:0.5b"),
        Order("bye"),
        Order("system", "be brief"),
    ]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (['"""one', "  two", "", '/three"""'], "one\n  two\n\n/three"),
        (['"""', "one", '"""'], "one"),
        (['"""one line"""'], "one line"),
        (['say """this"""'], 'say """this"""'),
    ],
)
def test_fences_hold_several_lines_together(lines, text):
    assert read(*lines) == [Say(text)]


@pytest.mark.parametrize("lines", [['"""', '"""'], ['""""""'], ['"""', "  ", '"""']])
def test_an_empty_fence_says_nothing(lines):
    assert read(*lines) == []


def test_an_unfinished_message_can_be_dropped():
    reader = Lines()
    reader.receive('"""one')
    assert reader.inside
    reader.drop()
    assert reader.receive("two") == Say("two")


def test_the_whole_conversation_is_sent_word_for_word():
    talk = Conversation(system="Be brief.")
    talk.keep("Hi", " Hello! \n")
    assert talk.messages("More") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Hello! \n"},
        {"role": "user", "content": "More"},
    ]
    talk.clear()
    talk.system = None
    assert talk.messages("New") == [{"role": "user", "content": "New"}]


def test_saving_as_text_and_as_json(tmp_path):
    talk = Conversation("m", "Be brief.")
    talk.keep("Cześć", "Hello")
    talk.save(tmp_path / "talk.txt")
    assert (tmp_path / "talk.txt").read_text(encoding="utf-8") == (
        "system: Be brief.\n\nuser: Cześć\n\nassistant: Hello\n"
    )
    talk.save(tmp_path / "talk.JSON")
    saved = json.loads((tmp_path / "talk.JSON").read_text(encoding="utf-8"))
    assert saved == {"model": "m", "messages": talk.messages("")[:-1]}


def test_only_files_of_this_talk_are_replaced(tmp_path):
    strange = tmp_path / "strange.txt"
    strange.write_text("precious")
    talk = Conversation()
    with pytest.raises(FileExistsError):
        talk.save(strange)
    assert strange.read_text() == "precious"
    talk.save(tmp_path / "mine.txt")
    talk.keep("Hi", "Hello")
    talk.save(tmp_path / "mine.txt")
    assert "Hello" in (tmp_path / "mine.txt").read_text()
