"""The relay from one network namespace to another, with loss and cuts: found, loaded, generated, tensors moved.

The node is a whole one over the tiny model, the client another process; what it is told is held against transformers
here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.network_namespaces import Lab, LabHost, namespaces, stop_program, why_not
from tests.fakes.relay_visitor import PROMPT, TOKENS
from tests.fakes.tiny_model import write_tiny_model

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")

TOKEN = {"VRM_API_TOKEN": "a token of the test"}
# Of the stream's segments; discovery loses more, since nothing repeats a datagram but the one who asks.
TCP_LOSS = "meta l4proto tcp numgen random mod 100 < 2"
UDP_PERCENT = 20
RESETS = "table inet cut {\n chain heard {\n type filter hook input priority -1; policy accept;\n"
RESETS += " iifname lo accept\n tcp dport 8765 reject with tcp reset\n }\n}\n"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with namespaces() as made:
        yield made


def start_node(host: LabHost, model: Path, cache: Path) -> subprocess.Popen[str]:
    """A whole node that has said that it listens."""
    words = [
        sys.executable, "-m", "gpu_node", "--model", str(model), "--host", "0.0.0.0", "--port", "0", "--device", "cpu",
        "--dtype", "float32", "--announce-port",
    ]  # fmt: skip
    more = {"POTLUCK_NODE_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    node = host.start(words, TOKEN | more)
    assert node.stdout is not None
    assert json.loads(node.stdout.readline())["relay_port"] == 8765
    return node


def cut(server: LabHost, now: bool) -> None:
    """While it lasts, whatever comes for the relay is answered by a reset."""
    if now:
        subprocess.run(server.command(["nft", "-f", "-"]), input=RESETS, text=True, check=True)
    else:
        server.run("nft", "delete", "table", "inet", "cut")


def visit(client: LabHost, server: LabHost) -> dict[str, object]:
    """What the visitor found; its line is cut when it asks for it."""
    visitor = client.start([sys.executable, "-m", "tests.fakes.relay_visitor", "5"], TOKEN)
    assert visitor.stdout is not None
    is_cut, told = False, ""
    for line in visitor.stdout:
        told = line.strip()
        if told in ("cut", "away") and is_cut is (told == "away"):
            is_cut = not is_cut
            cut(server, is_cut)
    stop_program(visitor)
    found: dict[str, object] = json.loads(told)
    return found


def greedy_ids(model: Path) -> list[int]:
    import torch
    from transformers import LlamaForCausalLM

    loaded = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        told = loaded.generate(
            torch.tensor([PROMPT]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
    ids: list[int] = told[0, len(PROMPT) :].tolist()
    return ids


@pytest.mark.timeout(300)
def test_a_client_finds_loads_generates_and_moves_tensors_through_loss_and_cuts(lab: Lab, tmp_path: Path) -> None:
    client, server = lab.host("10.77.0.1/24"), lab.host("10.77.0.2/24")
    model = write_tiny_model(tmp_path / "tiny-llama")
    node = start_node(server, model, tmp_path / "cache")
    try:
        for host in (client, server):
            host.lose(UDP_PERCENT, TCP_LOSS)
        found = visit(client, server)
    finally:
        node.kill()
        stop_program(node)
    expected = greedy_ids(model)
    assert found["ids"] == expected and found["likeliest"] == expected[0]
    assert found["tensor"] is True
    assert found["losses"] == 4, "each cut was seen, and mended"
