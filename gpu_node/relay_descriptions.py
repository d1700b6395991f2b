"""A model described to a relay client that asks for it by name: what /api/show says, as far as STATS carries it.

Pure. What is too long for a value is left out; nobody's requests or memory are in it.
"""

from __future__ import annotations

from gpu_node.api.records import shown
from gpu_node.model_folder import ModelDescription
from wire.scalars import Table, Value

# Of a value's 65536; a model's template has some thousand bytes, a licence some ten thousand.
LONGEST_TEXT_BYTES = 60_000
INFO = "info."


def description_of(name: str, model: ModelDescription, begins_with_bos: bool | None) -> Table:
    """`begins_with_bos` is known of a loaded model only."""
    record = shown(name, model, begins_with_bos)
    texts: dict[str, Value] = {"template": record["template"], "licence": record.get("license", "")}
    told = {key: text for key, text in texts.items() if text and len(str(text).encode()) <= LONGEST_TEXT_BYTES}
    info = {f"{INFO}{key}": value for key, value in record["model_info"].items() if _is_plain(value)}
    return tuple((told | info).items())


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value.encode()) <= LONGEST_TEXT_BYTES
    return isinstance(value, bool | int | float)
