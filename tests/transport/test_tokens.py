"""The token that a program shares with relay nodes, out of its environment."""

from __future__ import annotations

import pytest

from transport.tokens import shared_token


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        ({}, None),
        ({"VRM_API_TOKEN": "both"}, "both"),
        ({"POTLUCK_NODE_TOKEN": "relay", "VRM_API_TOKEN": "both"}, "relay"),
        ({"POTLUCK_NODE_TOKEN": " ", "VRM_API_TOKEN": " both\n"}, "both"),
        ({"POTLUCK_NODE_TOKEN": "", "VRM_API_TOKEN": ""}, None),
    ],
)
def test_the_relays_own_name_goes_first_and_empty_ones_are_none(environ, token):
    assert shared_token(environ) == token
