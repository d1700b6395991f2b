"""The other parts that measurements stand on: the clock that jumps, the canned nodes, configurations, raw answers."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from bench.choose import Fleet, PlainScan, policy_of
from bench.rig import virtual_time
from bench.rig.listening import Heard, is_whole, unpack
from bench.rig.mock import answer_tokens, canned
from bench.rig.peers import Place, haproxy, nginx
from bench.rig.phones import phones_of, write_fleet
from bench.rig.wrk import Load, WrkFailed, measured_from
from server.routing import Choice, Demand, choose
from tests.fakes.phone import PhoneSettings


def test_virtual_time_jumps_over_waiting() -> None:
    async def sleepers() -> list[tuple[str, float]]:
        now = asyncio.get_running_loop().time
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((name, now()))

        await asyncio.gather(sleeper("late", 3600.0), sleeper("early", 60.0))
        return woken

    began = time.monotonic()
    assert virtual_time.run(sleepers()) == [("early", 60.0), ("late", 3600.0)]
    assert time.monotonic() - began < 30


def test_virtual_connections_carry_bytes_and_their_end() -> None:
    async def talk() -> bytes:
        async with phones_of([PhoneSettings(tokens_per_second=1.0, prompt_cache=0, answer_tokens=(5, 5))]) as phones:
            reader, writer = await asyncio.open_connection("127.0.0.1", phones[0].port)
            writer.write(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer

    assert b'{"version":"0.24.0"}' in virtual_time.run(talk())


def test_nobody_listens_where_nobody_listens() -> None:
    async def knock() -> None:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", 9)

    virtual_time.run(knock())


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_canned_answers_are_well_framed(path: str) -> None:
    answer = canned(path, 4)
    heard = Heard()
    unpack(heard, answer.head + b"".join(answer.lines))
    assert (heard.broken, heard.status) == ("", 200)
    records = [line.removeprefix(b"data: ") for line in heard.body.split(b"\n") if line and b"[DONE]" not in line]
    if path == "/api/chat":
        assert "".join(json.loads(record)["message"]["content"] for record in records) == "w0 w1 w2 w3"
    whole = Heard()
    unpack(whole, answer.whole)
    assert b"w0 w1 w2 w3" in whole.body and "".join(answer_tokens(4)) == "w0 w1 w2 w3"


def test_a_cut_body_is_no_answer() -> None:
    answer = canned("/api/chat", 4)
    heard = Heard()
    unpack(heard, (answer.head + b"".join(answer.lines))[:-10])
    assert heard.broken


def test_the_length_of_an_error_is_awaited() -> None:
    error = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nhell"
    assert not is_whole(error) and is_whole(error + b"o") and not is_whole(error[:20])


def test_the_summary_of_wrk_is_read() -> None:
    line = (
        'RESULT {"requests":110,"wrong":10,"sample":"500 x","seconds":2.0,"p50_ms":1.5,"p99_ms":9.0,'
        '"connect":1,"read":2,"write":0,"timeout":3}'
    )
    measured = measured_from(f"Running 2s test\n{line}\n")
    assert (measured.per_second, measured.median_ms, measured.p99_ms, measured.errors) == (50.0, 1.5, 9.0, 16)
    with pytest.raises(WrkFailed, match="unable to connect"):
        measured_from("", "unable to connect to 127.0.0.1")


def test_streams_of_our_own_api_have_their_own_path() -> None:
    assert Load("x", 1, 1, stream=True).path("ask") == "/ask_stream"
    assert Load("x", 1, 1).path("ask") == "/ask"
    assert Load("x", 1, 1, stream=True).path("openai") == "/v1/chat/completions"


def test_peers_get_all_nodes_and_one_process(tmp_path: Path) -> None:
    place = Place(None, [21001, 21002], tmp_path)
    for maker, file, words in (
        (nginx, "nginx/nginx.conf", ("worker_processes 1;", "proxy_buffering off;")),
        (haproxy, "haproxy.cfg", ("nbthread 1", "balance roundrobin")),
    ):
        if maker(place, 21000) is None:
            continue
        text = (tmp_path / file).read_text()
        assert all(word in text for word in (*words, "127.0.0.1:21001", "127.0.0.1:21002"))


def test_the_fleet_file_lists_the_phones(tmp_path: Path) -> None:
    entries = json.loads(write_fleet(tmp_path / "phones.json", [1, 2], [{"weight": 3}]).read_text())
    assert entries == [
        {"host": "127.0.0.1", "port": 1, "name": "phone-0", "weight": 3},
        {"host": "127.0.0.1", "port": 2, "name": "phone-1"},
    ]


@pytest.mark.parametrize("every", [1, 10])
def test_the_plain_scan_chooses_as_often_as_the_gateway(every: int) -> None:
    """The reference beside the measured choice: over full rotations both give each node its weight's share."""
    fleet = Fleet.of(30, held=0)
    fleet.occupy_all_but(every)
    scan = PlainScan(fleet)
    policy = policy_of("weighted_round_robin", returning=False)
    rotations = 4 * sum(int(seat.weight) for seat in fleet.roster.free.values())
    ours, theirs = [], []
    for number in range(rotations):
        outcome = choose(Demand(fleet.roster.model), fleet.roster, policy, float(number))
        assert isinstance(outcome, Choice)
        ours.append(outcome.seat.id)
        theirs.append(scan.choose())
    assert sorted(ours) == sorted(str(node) for node in theirs)


def test_nobody_is_chosen_when_nobody_is_free() -> None:
    fleet = Fleet.of(5, held=2)
    fleet.occupy_all_but(None)
    assert PlainScan(fleet).choose() is None
