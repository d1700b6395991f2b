"""The owner's side of phones: list, drain, resume, rename, remove. Ordinary calls, with a key where keys are.

Draining is the entry's `enabled`: running answers end as they would, nothing new comes, and it lasts through a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from server.api import fields
from server.api.fleet import condition_record, iso_time
from server.api.incoming import Incoming
from server.api.services import Services
from server.errors import MethodRefused, NodeUnknown, PathUnknown, RequestInvalid
from server.nodes import Load, Node, NodeId, model_key
from server.phones_entry import AUTO, keep_alive_of, warm_up_of, warm_up_word
from server.placement import may_load

PHONES_PREFIX = "/api/phones/"
LONGEST_NAME = 100


def _as_in_file(read: Callable[[Any], Any]) -> fields.Check:
    """A field that is written into the fleet file, checked as it is there. One in a tuple: None is a value too."""

    def check(value: Any, field: str) -> tuple[Any]:
        try:
            return (read(value),)
        except ValueError as problem:
            raise RequestInvalid(f"'{field}' must be {problem}", field=field) from None

    return check


_PATCH_FIELDS: dict[str, fields.Check] = {
    "name": fields.text,
    "warm_up": _as_in_file(warm_up_of),
    "keep_alive": _as_in_file(keep_alive_of),
}


class PhonesApi:
    def __init__(self, services: Services) -> None:
        self._services, self._joining = services, services.joining

    async def listed(self, incoming: Incoming) -> None:
        nodes = [node for node in self._services.registry.fleet.nodes.values() if self._is_phone(node)]
        await incoming.reply.answer_json({"phones": [self._phone(node) for node in nodes]})

    async def order(self, incoming: Incoming) -> None:
        """POST /api/phones/ID/drain or /resume."""
        phone, _, word = incoming.path.removeprefix(PHONES_PREFIX).rpartition("/")
        if not phone:
            raise MethodRefused(incoming.path, incoming.method)
        if word not in ("drain", "resume"):
            raise PathUnknown(incoming.path)
        await self._joining.enable((await self._owned(phone)).id, word == "resume")
        await self._answer(incoming, NodeId(phone))

    async def patch(self, incoming: Incoming) -> None:
        """PATCH /api/phones/ID: its name, and what it keeps in memory."""
        wish = fields.checked(await incoming.json(), _PATCH_FIELDS)
        if not wish:
            raise RequestInvalid(f"nothing is to be changed: {', '.join(_PATCH_FIELDS)} can be")
        name = wish.get("name", "").strip()
        if "name" in wish and not (name and name.isprintable() and len(name) <= LONGEST_NAME):
            raise RequestInvalid(f"'name' must be a printable text of 1 to {LONGEST_NAME} characters", field="name")
        phone = await self._owned(incoming.path.removeprefix(PHONES_PREFIX))
        kept = {field: wish[field][0] for field in wish if field != "name"}
        _check_kept(phone, kept)
        if name:
            await self._joining.rename(phone.id, name)
        if kept:
            await self._joining.change(phone.id, lambda spec: replace(spec, **kept))
        await self._answer(incoming, phone.id)

    async def remove(self, incoming: Incoming) -> None:
        phone = self._known(incoming.path.removeprefix(PHONES_PREFIX))
        if phone.spec.origin != "file":
            raise RequestInvalid(f"'{phone.name}' is not in the fleet file: it leaves when it is unplugged")
        await self._joining.remove(phone.id)
        await incoming.reply.answer_json({"id": phone.id, "name": phone.name, "removed": True})

    def _is_phone(self, node: Node) -> bool:
        """One that has joined stays one, whatever it says of itself."""
        if node.spec.kind != "ollama" or node.spec.origin == "embedded":
            return False
        return not node.is_gpu_node or self._joining.has_token(node.id)

    def _known(self, phone: str) -> Node:
        node = self._services.registry.node(NodeId(phone))
        if node is None or not self._is_phone(node):
            names = tuple(one.id for one in self._services.registry.fleet.nodes.values() if one.name == phone)
            raise NodeUnknown(phone, names)
        return node

    async def _owned(self, phone: str) -> Node:
        """The phone, as one that the owner has words for: where it only hangs on a cable, it gets an entry now."""
        node = self._known(phone)
        if node.spec.origin != "file":
            await self._joining.list_found(node.spec)
        return self._known(phone)

    async def _answer(self, incoming: Incoming, phone: NodeId) -> None:
        await incoming.reply.answer_json(self._phone(self._known(phone)))

    def _phone(self, node: Node) -> dict[str, Any]:
        spec, load = node.spec, self._services.registry.loads.get(node.id) or Load()
        news = self._joining.news.get(node.id)
        measured = spec.details.get("tokens_per_second")
        speed = load.tokens_per_second or (measured if isinstance(measured, float | int) else None)
        return {
            "id": spec.id,
            "name": spec.name,
            "address": spec.address,
            "origin": spec.origin,
            "joined": self._joining.has_token(spec.id),
            "joined_at": self._joining.registered_at.get(spec.id),
            "status": node.status,
            "drained": not spec.enabled,
            "in_flight": load.in_flight,
            "models": [copy.name for copy in node.models.values()],
            "resident": [model.name for model in node.resident.values()],
            "tokens_per_second": round(speed, 1) if speed else None,
            "condition": None if node.condition is None else condition_record(node.condition),
            "resting": node.resting,
            "signal_dbm": None if news is None else news.signal_dbm,
            "reported_at": None if news is None else iso_time(news.heard_at),
            "last_error": load.last_error or node.last_error,
            "serial": spec.serial,
            "warm_up": warm_up_word(spec.warm_up),
            "keep_alive": AUTO if spec.keep_alive is None else spec.keep_alive,
            "details": dict(spec.details),
        }


def _check_kept(phone: Node, kept: Mapping[str, Any]) -> None:
    """Raises RequestInvalid for a model that its entry does not let it serve: the file could not be read again."""
    for name in kept.get("warm_up") or ():
        if not may_load(phone, model_key(name)):
            raise RequestInvalid(f"the fleet file lets '{phone.name}' serve other models only", field="warm_up")
