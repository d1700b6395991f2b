"""LOAD and UNLOAD: a session's hold on a model.

Invariants: a model that a session has loaded stays until the session gives it back; a loading that fails leaves no
hold. How room is made, and who leaves, is decided by `residents`.
"""

from __future__ import annotations

from gpu_node.engine.step import ModelRunner
from gpu_node.errors import Unsupported
from gpu_node.host import ModelHost
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import ModelDescription
from gpu_node.relay.call import RelayCall, Session
from gpu_node.relay.load_options import LoadOptions, read_options
from gpu_node.relay.models import Models
from wire.messages_session import Ack
from wire.messages_work import Load, Loaded, Unload
from wire.scalars import Table, Value


class Loads:
    def __init__(self, models: Models) -> None:
        self._models, self._residents = models, models.residents

    async def load(self, call: RelayCall) -> None:
        asked = call.message(Load)
        if asked.priority:
            raise Unsupported("models are loaded in the order of asking: priority must be 0", field="priority")
        options = read_options(asked.options, self._has_gpu())
        host = await self._loaded(call, asked.model, options)
        size = host.held.total_bytes if host.engine.runner is not None else 0
        loaded = Loaded(host.name, host.context_tokens, size, facts=facts_of(host))
        await call.stream.send_message(loaded, ends=True)

    async def unload(self, call: RelayCall) -> None:
        """The bytes are 0 when others still want the model, or some request still has it."""
        asked = call.message(Unload)
        hold = call.session.holds.find(asked.model)
        if hold is not None:
            freed = await call.session.holds.give_back(hold)
        else:
            freed = await self._let_go(self._residents.find(asked.model))
        await call.stream.send_message(Ack(freed), ends=True)

    async def _let_go(self, host: ModelHost) -> int:
        """What no session holds, requests have brought in, and anybody may ask it to leave, as over HTTP."""
        if host.owners or host.engine.runner is None:
            return 0
        size = host.held.total_bytes
        return size if await self._residents.unload(host) else 0

    async def _loaded(self, call: RelayCall, name: str, options: LoadOptions) -> ModelHost:
        session, wish = call.session, options.wish(self._residents.usual_wish)
        before = self._make_way(session, name, wish)
        wanted: list[ModelHost] = []
        try:
            async with self._models.telling(lambda: wanted[0] if wanted else None, call.stream.send):
                host = await self._residents.wanted(name, wish)
                wanted.append(host)
                host.owners.add(session.owner)  # from now on nobody unloads it
                await self._residents.load(host)
        except BaseException:
            if before is not None and before.ready:
                session.holds.take(before)
            for host in wanted:
                if host.name not in session.holds.names:
                    host.owners.discard(session.owner)
            raise
        if options.hold:
            session.holds.take(host, options.keep_alive_seconds)
        elif host.name not in session.holds.names:
            host.owners.discard(session.owner)
            await self._residents.load(host, options.keep_alive_seconds)  # it is there: only its time begins
        return host

    def _make_way(self, session: Session, name: str, wish: LoadWish | None) -> ModelHost | None:
        """Who loads its model anew in another way gives up the old way first; the host that had it."""
        hold = session.holds.find(name)
        if hold is None or wish is None or hold.host.wish == wish:
            return None
        session.holds.drop(hold)
        return hold.host

    def _has_gpu(self) -> bool:
        return any(account.has_gpu for account in self._residents.accounts)


def facts_of(host: ModelHost) -> Table:
    """What a program may want to know of a loaded model; names are never taken away."""
    runner, described = host.engine.runner, host.description
    facts: dict[str, Value] = {"slots": host.slots.running}
    if described is not None:
        facts |= _described(described)
    if runner is not None:
        facts |= _running(runner)
    return tuple(facts.items())


def _described(described: ModelDescription) -> dict[str, Value]:
    layers = described.config.get("num_hidden_layers")
    known: dict[str, Value] = {
        "family": described.family,
        "parameters": described.parameter_count,
        "quantisation": described.quantisation,
        "digest": described.digest,
        "size_bytes": described.size_bytes,
        "trained_context_tokens": described.context_length or 0,
    }
    if isinstance(layers, int):
        known["layers"] = layers
    return known | {f"parameter.{name}": value for name, value in told_parameters(described)}


def told_parameters(described: ModelDescription) -> Table:
    """What the model's maker wants where a client has no wish of its own, such as `temperature` and `stop`."""
    told: list[tuple[str, Value]] = []
    for name, value in described.parameters.items():
        if isinstance(value, bool | int | float | str):
            told.append((name, value))
        elif isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
            told.append((name, tuple(value)))
    return tuple(told[:32])


def _running(runner: ModelRunner) -> dict[str, Value]:
    return {
        "vocabulary": runner.vocabulary.size,
        "hidden_size": runner.embedding_length,
        "dtype": runner.dtype,
        "device": runner.device,
        "end_ids": tuple(sorted(runner.vocabulary.end_ids))[:64],
        "begins_with_bos": runner.vocabulary.begins_with_bos,
        "cache_bytes": runner.cache.block_count * runner.cache.block_bytes,
        "block_tokens": runner.cache.block_tokens,
    }
