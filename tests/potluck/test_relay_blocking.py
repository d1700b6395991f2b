"""The blocking client of a relay node, against a node that is played in a thread of its own."""

import asyncio
import gc
import threading

import pytest

from potluck import LoadProgress, Misuse, ModelUnknown, NodeUnreachable, PotluckError, Relay
from tests.potluck.played import playing
from wire.messages_session import GoodbyeReason


def test_an_answer_in_pieces_and_as_a_whole():
    with playing() as node, Relay(node.place) as relay:
        stream = relay.generate("tiny", "Paris?")
        assert [str(piece) for piece in stream] == ["Par", "is", " is", " nice", "!"]
        assert stream.answer.text == stream.text == "Paris is nice!"
        assert relay.generate("tiny", "Paris?").finish().ids == (5, 6, 7, 8, 9, 10, 11)


def test_everything_else_does_what_its_twin_does(tmp_path):
    (tmp_path / "weights").write_bytes(b"123")
    with playing() as node, Relay.connect(node.place) as relay:
        told = []
        assert relay.load_model("tiny", on_progress=told.append).facts["layers"] == 2
        assert isinstance(told[0], LoadProgress)
        assert relay.unload("tiny") == 1000
        assert relay.embed("tiny", "abc")[0] == [3.0, 1.0, 2.0]
        assert relay.stats().values["version"] == "0.1.0"
        assert relay.push("mine", tmp_path, on_progress=told.append) == 3
        assert relay.ping() > 0
        with relay.tensor([1, 2, 3]) as tensor:
            tensor.put([4, 5, 6])
            assert tensor.get().tolist() == [4, 5, 6]
            assert (tensor.dtype, tensor.shape, tensor.nbytes, tensor.device) == ("int64", (3,), 24, "cpu")
            with relay.run("tiny", tensor, keep=True) as kept:
                assert kept.shape == (3, 16) and str(kept.handle) in repr(kept)
        assert relay.run("tiny", [1], output="hidden").tolist() == [[1.0] * 4]
        assert relay.free(relay.tensor(b"12"), relay.tensor(b"345")) == 5
        assert relay.place == node.place
        with pytest.raises(ModelUnknown):
            relay.load_model("huge")
        with pytest.raises(Misuse):
            relay.generate("tiny", "?", **{"nonsense": 1})


def test_several_requests_at_once_in_the_clients_own_loop():
    with playing() as node, Relay(node.place) as relay:

        async def both():
            one, two = relay.asynchronous.generate("tiny", "a"), relay.asynchronous.generate("tiny", "b")
            return await asyncio.gather(one.finish(), two.finish())

        assert [answer.text for answer in relay.submit(both())] == ["Paris is nice!"] * 2


def test_many_threads_share_a_client():
    with playing() as node, Relay(node.place) as relay:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(relay.generate("tiny", "?").finish().text)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == ["Paris is nice!"] * 8
        assert node.node.accepted == 1


@pytest.mark.parametrize("way", ["close", "block", "dropped"])
def test_leaving_a_stream_stops_the_node(way):
    with playing(gate=asyncio.Semaphore(1)) as node, Relay(node.place) as relay:
        stream = relay.generate("tiny", "?")
        assert str(next(stream)) == "Par"
        if way == "close":
            stream.close()
            stream.close()
        elif way == "block":
            with stream:
                pass
        del stream
        gc.collect()
        node.do(lambda played: played.until(lambda: bool(played.cancelled)))


def test_events_tell_what_the_node_does_first():
    progress = (LoadProgress,)
    assert progress
    with playing() as node, Relay(node.place) as relay:
        assert len(list(relay.generate("tiny", "?").events())) == 5


def test_a_cut_is_not_seen():
    with playing() as node, Relay(node.place) as relay:
        relay.open()
        node.do(lambda played: played.cut_after(2))
        assert relay.generate("tiny", "?").finish().text == "Paris is nice!"


def test_closing_ends_the_thread_and_frees_the_node():
    with playing() as node:
        relay = Relay.connect(node.place)
        stream = relay.generate("tiny", "?")
        next(stream)
        relay.close()
        relay.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "potluck-relay"][1:]
        node.do(lambda played: played.until(lambda: bool(played.goodbyes)))
        assert node.node.goodbyes[0].reason is GoodbyeReason.FINISHED
        with pytest.raises(PotluckError, match="closed"):
            relay.stats()
        with pytest.raises(PotluckError):
            next(stream)
        stream.close()


def test_nobody_there_leaves_no_thread():
    with playing() as node:
        node.do(lambda played: played.stop())
        with pytest.raises(NodeUnreachable):
            Relay.connect(node.place)
        with pytest.raises(NodeUnreachable), Relay(node.place):
            pass
