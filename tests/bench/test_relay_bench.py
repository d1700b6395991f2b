"""What the relay's measurement computes from its samples, and that the bare socket moves what it says."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest

from bench.relay import MIB, judge, size_name
from bench.rig.raw_socket import RawClient, serve
from bench.rig.relay_bulk import WAYS, rounds_for, shares
from bench.rig.relay_tokens import HTTP, RELAY_EACH, RELAY_ONE


def figures(share: float, cost: float) -> dict:
    cell = {name: {"relay": share} for name in ("write", "read")}
    costs = {way: {"node_us": cost, "client_us": cost, "per_second": 1.0} for way in (RELAY_EACH, RELAY_ONE)}
    return {
        "tensors": {str(size): {"share_of_raw": cell} for size in (1024, MIB, 256 * MIB)},
        "tokens": {**costs, HTTP: {"node_us": 10.0, "client_us": 10.0, "per_second": 1.0}},
    }


def test_large_tensors_have_a_bound_and_small_ones_none():
    found = {target.name: target.reached for target in judge(figures(0.71, 9.0))}
    assert [name for name in found if "share of a bare socket" in name] == [
        f"{name} of {size}: share of a bare socket" for size in ("1 MiB", "256 MiB") for name in ("write", "read")
    ]
    assert all(found.values())


def test_slower_than_the_bound_is_missed():
    assert not any(target.reached for target in judge(figures(0.69, 10.1)))


def test_shares_are_of_the_bare_sockets_speed():
    seconds = {WAYS[0]: [1.0, 3.0, 1.0], WAYS[1]: [2.0, 2.0, 9.0], WAYS[2]: [4.0, 4.0, 4.0]}
    assert shares({"write": seconds}) == {"write": {WAYS[1]: 0.5, WAYS[2]: 0.25}}


@pytest.mark.parametrize(("size", "rounds"), [(256 * MIB, 5), (16 * MIB, 80), (1024, 200)])
def test_small_tensors_go_more_often(size, rounds):
    assert rounds_for(size, 256 * MIB) == rounds


def test_sizes_are_named_for_people():
    assert [size_name(size) for size in (1024, 256 * 1024, 16 * MIB)] == ["1 KiB", "256 KiB", "16 MiB"]


def test_the_bare_socket_sends_and_receives_all_of_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=_serve_until_closed, args=(listener,))
        thread.start()
        with closing(RawClient(port)) as raw:
            room = memoryview(bytearray(b"x" * 300_000))
            assert raw.ping_seconds() > 0
            assert raw.write_seconds(memoryview(bytes(300_000)), 4096) > 0
            assert raw.read_seconds(room, 65_536) > 0
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert bytes(room) == bytes(300_000)


def _serve_until_closed(listener: socket.socket) -> None:
    with pytest.raises(OSError):
        serve(listener)
