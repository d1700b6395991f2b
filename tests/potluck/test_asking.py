import pytest

from potluck import Misuse
from potluck.asking import ask_body, batch_body


def test_options_stand_beside_the_prompt_and_none_is_left_out():
    body = ask_body("hi", None, {"temperature": 0, "model": None, "cache": False, "stop": ["\n"]})
    assert body == {"prompt": "hi", "temperature": 0, "cache": False, "stop": ["\n"]}


def test_messages_go_as_they_are():
    messages = [{"role": "user", "content": "hi"}]
    assert ask_body(None, messages, {"seed": 1}) == {"messages": messages, "seed": 1}


@pytest.mark.parametrize(("prompt", "messages"), [(None, None), ("hi", [{"role": "user", "content": "hi"}])])
def test_exactly_one_of_prompt_and_messages(prompt, messages):
    with pytest.raises(Misuse, match="either a prompt or messages"):
        ask_body(prompt, messages, {})


@pytest.mark.parametrize("messages", ["hi", {"role": "user"}, ["hi"]])
def test_messages_of_a_wrong_shape_are_found_here(messages):
    with pytest.raises(Misuse):
        ask_body(None, messages, {})


def test_images_may_be_bytes_paths_or_base64(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(b"cat")
    body = ask_body("what?", None, {"images": [b"cat", path, "Y2F0"]})
    assert body["images"] == ["Y2F0"] * 3
    message = {"role": "user", "content": "what?", "images": [b"cat"]}
    assert ask_body(None, [message], {})["messages"][0]["images"] == ["Y2F0"]
    assert message["images"] == [b"cat"]


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(Misuse, match=r"gone\.png"):
        ask_body("what?", None, {"images": [tmp_path / "gone.png"]})


def test_a_batch_of_texts_shares_its_options():
    assert batch_body(["a", "b"], {"model": "m"}, stream=False) == {"prompts": ["a", "b"], "model": "m"}
    assert batch_body(["a"], {}, stream=True) == {"prompts": ["a"], "stream": True}


def test_a_batch_of_requests_merges_shared_options_under_its_own():
    body = batch_body(["a", {"prompt": "b", "seed": 2}, {"messages": []}], {"seed": 1}, stream=False)
    assert body == {"requests": [{"seed": 1, "prompt": "a"}, {"seed": 2, "prompt": "b"}, {"seed": 1, "messages": []}]}


@pytest.mark.parametrize("requests", ["one text", {"prompt": "one"}, [{"seed": 1}]])
def test_a_batch_of_a_wrong_shape_is_found_here(requests):
    with pytest.raises(Misuse):
        batch_body(requests, {}, stream=False)
