"""Where in a JSON text each value stands."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from server.phones_places import Place, line_and_column, places, repeats

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.sampled_from([None, 2]))
def test_every_value_is_found_where_it_stands(value: object, indent: int | None):
    text = json.dumps(value, indent=indent)
    found = places(text)
    assert repeats(text) == []

    def look(inner: object, at: Place) -> None:
        rest = text[found[at] :]
        if at and isinstance(at[-1], str):
            key, end = json.JSONDecoder().raw_decode(rest)
            assert key == at[-1]
            rest = rest[end:].lstrip().removeprefix(":").lstrip()
        assert json.JSONDecoder().raw_decode(rest)[0] == inner
        for key, child in inner.items() if isinstance(inner, dict) else ():
            look(child, (*at, key))
        for index, child in enumerate(inner) if isinstance(inner, list) else ():
            look(child, (*at, index))

    look(value, ())


def test_lines_and_columns_count_from_one():
    assert [line_and_column("a\nbc", offset) for offset in range(4)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
