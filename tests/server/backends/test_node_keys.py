from __future__ import annotations

import pytest

from server.backends.node_keys import key_of
from server.errors import NodeUnreachable
from server.nodes import NodeId, NodeSpec


def spec(name: str | None) -> NodeSpec:
    return NodeSpec(NodeId("n"), "vLLM", "openai", "10.0.0.1", 8000, api_key_env=name)


def test_a_node_without_a_name_for_a_key_gets_none():
    assert key_of(spec(None), {"KEY": "x"}) is None


def test_the_key_is_taken_from_the_mapping():
    assert key_of(spec("KEY"), {"KEY": " secret\n"}) == "secret"


@pytest.mark.parametrize("secrets", [{}, {"KEY": ""}, {"KEY": "a\r\nX-Evil: 1"}, {"KEY": "schlüssel"}])
def test_a_missing_or_malformed_key_makes_the_node_unreachable_and_is_not_shown(secrets: dict[str, str]):
    with pytest.raises(NodeUnreachable) as caught:
        key_of(spec("KEY"), secrets)
    assert "KEY" in caught.value.message
    assert not any(value and value in caught.value.message for value in secrets.values())
