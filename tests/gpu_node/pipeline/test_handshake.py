"""The greeting of two stages: who is let in, who is told why not, and that no bytes break it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.pipeline.ends import HEAD, LinkEnds
from gpu_node.pipeline.errors import LinkFault, LinkRefused
from gpu_node.pipeline.handshake import (
    ANSWER_SIZE,
    HELLO_SIZE,
    Agreement,
    ReceiverGreeting,
    SenderGreeting,
    Side,
    Verdict,
)
from wire.auth import NONCE_SIZE, PROOF_SIZE

ENDS = LinkEnds(HEAD, 2, 7)


def side(token: str = "secret", fill: int = 1, frame_bytes: int = 1000) -> Side:
    return Side(token, bytes([fill]) * NONCE_SIZE, frame_bytes)


def greet(sender: SenderGreeting, receiver: ReceiverGreeting, expected: list[LinkEnds]) -> None:
    """To the end; raises what the sender raises."""
    said = sender.begin()
    while said:
        assert len(said) == receiver.needed
        answer = receiver.receive(said, expected)
        assert len(answer) == sender.needed
        said = sender.receive(answer)


def test_two_that_agree() -> None:
    sender, receiver = SenderGreeting(side(), ENDS), ReceiverGreeting(side(fill=2, frame_bytes=2000))
    greet(sender, receiver, [LinkEnds(0, 1), ENDS])
    assert sender.agreement == Agreement(ENDS, 2000)
    assert receiver.agreement == Agreement(ENDS, 1000)


@pytest.mark.parametrize(
    ("token", "expected", "verdict", "words"),
    [
        ("other", [ENDS], Verdict.WRONG_TOKEN, "its token is another one"),
        ("other", [LinkEnds(5, 6)], Verdict.WRONG_TOKEN, "its token is another one"),
        ("secret", [LinkEnds(HEAD, 1, 7)], Verdict.UNKNOWN_STAGES, "no link between these stages"),
        ("secret", [], Verdict.UNKNOWN_STAGES, "no link between these stages"),
        ("secret", [LinkEnds(HEAD, 2, 8)], Verdict.OTHER_EPOCH, "another epoch"),
    ],
)
def test_those_that_do_not(token: str, expected: list[LinkEnds], verdict: Verdict, words: str) -> None:
    sender, receiver = SenderGreeting(side(token), ENDS), ReceiverGreeting(side(fill=2))
    with pytest.raises(LinkRefused, match=words):
        greet(sender, receiver, expected)
    assert (receiver.verdict, receiver.agreement, sender.agreement) == (verdict, None, None)


def test_a_receiver_that_does_not_know_the_token_is_found_out() -> None:
    """It says that all is well, and cannot prove it."""
    sender, receiver = SenderGreeting(side(), ENDS), ReceiverGreeting(side("other", fill=2))
    sender.receive(receiver.receive(sender.begin(), [ENDS]))
    with pytest.raises(LinkRefused, match="token"):
        sender.receive(bytes([Verdict.ACCEPTED]) + bytes(PROOF_SIZE))
    assert sender.agreement is None


def test_a_recorded_greeting_opens_nothing() -> None:
    recorded: list[bytes] = []
    sender, receiver = SenderGreeting(side(), ENDS), ReceiverGreeting(side(fill=2))
    recorded.append(sender.begin())
    recorded.append(sender.receive(receiver.receive(recorded[0], [ENDS])))
    assert receiver.receive(recorded[1], [ENDS])[0] == Verdict.ACCEPTED
    again = ReceiverGreeting(side(fill=3))
    again.receive(recorded[0], [ENDS])
    assert again.receive(recorded[1], [ENDS])[0] == Verdict.WRONG_TOKEN


def test_a_proof_is_not_good_for_the_other_direction() -> None:
    sender, receiver = SenderGreeting(side(), ENDS), ReceiverGreeting(side(fill=2))
    proof = sender.receive(receiver.receive(sender.begin(), [ENDS]))
    with pytest.raises(LinkRefused, match="token"):
        sender.receive(bytes([Verdict.ACCEPTED]) + proof)


@given(st.integers(0, HELLO_SIZE - 1), st.integers(1, 255))
def test_a_changed_hello_is_refused(at: int, change: int) -> None:
    sender, receiver = SenderGreeting(side(), ENDS), ReceiverGreeting(side(fill=2))
    hello = bytearray(sender.begin())
    hello[at] ^= change
    try:
        answer = receiver.receive(bytes(hello), [ENDS])
    except LinkFault:
        return
    assert receiver.receive(sender.receive(answer), [ENDS])[0] == Verdict.WRONG_TOKEN


@given(st.binary(min_size=HELLO_SIZE, max_size=HELLO_SIZE), st.binary(min_size=PROOF_SIZE, max_size=PROOF_SIZE))
def test_random_bytes_are_no_stage(hello: bytes, proof: bytes) -> None:
    receiver = ReceiverGreeting(side())
    with pytest.raises(LinkFault):
        receiver.receive(hello, [ENDS])
    known = ReceiverGreeting(side())
    known.receive(SenderGreeting(side(fill=3), ENDS).begin(), [ENDS])
    assert known.receive(proof, [ENDS]) == bytes([Verdict.WRONG_TOKEN]) + bytes(PROOF_SIZE)
    with pytest.raises(LinkFault):
        SenderGreeting(side(), ENDS).receive(hello)


def test_another_version_is_told() -> None:
    sender = SenderGreeting(side(), ENDS)
    hello = bytearray(ReceiverGreeting(side(fill=2)).receive(sender.begin(), [ENDS]))
    hello[4] += 1
    with pytest.raises(LinkRefused, match="does not speak version 1"):
        sender.receive(bytes(hello))


def test_an_answer_that_is_none() -> None:
    sender, receiver = SenderGreeting(side(), ENDS), ReceiverGreeting(side(fill=2))
    sender.receive(receiver.receive(sender.begin(), [ENDS]))
    with pytest.raises(LinkFault, match="no greeting ends with 200"):
        sender.receive(bytes([200]) * ANSWER_SIZE)
