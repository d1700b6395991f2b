"""Which request is answered by whom, and how every one of them ends.

Invariants: a request ends in one answer or one ERROR, whatever its handler does; a fault of ours is one stream's
INTERNAL and a line in the log, and harms nobody else; what a client sent in breach of the protocol ends its connection.
"""

from __future__ import annotations

import asyncio
import logging

from gpu_node.errors import NodeError
from gpu_node.relay.call import Handler, Handlers, RelayCall
from gpu_node.relay.counters import RelayCounters
from gpu_node.relay.errors import CANCELLED, INTERNAL, Failure, failure_of
from gpu_node.relay.sessions import ClientSession, Sessions
from transport.errors import Cancelled, ConnectionLost, StreamEnded
from transport.streams import Stream
from wire.connection import FrameReceived
from wire.errors import RemoteError
from wire.messages_session import ErrorCode

log = logging.getLogger("gpu_node.relay")

UNKNOWN = Failure(ErrorCode.UNSUPPORTED, "this node does not do that")
TOO_SHORT = Failure(ErrorCode.BAD_REQUEST, "the request ended before all of it was there")


class Requests:
    def __init__(self, handlers: Handlers, sessions: Sessions, counters: RelayCounters) -> None:
        self._handlers, self._sessions, self._counters = handlers, sessions, counters

    def begin(self, session: ClientSession, stream: Stream, request: FrameReceived) -> None:
        """Answer it in a task of its own, which belongs to the session."""
        self._counters.requests[request.type.name] += 1
        handler = self._handlers.get(request.type)
        if handler is None:
            self.refuse(stream, request, UNKNOWN)
            return
        loop = asyncio.get_running_loop()
        work = self._answer(RelayCall(session, stream, request), handler)
        task = loop.create_task(work, name=f"{request.type.name} of {session.owner}")
        session.tasks.add(task)
        task.add_done_callback(lambda done: self._sessions.settle(session, done))

        def call_off() -> None:
            # Not at once: a task that was cancelled before its first step would leave its request unanswered.
            loop.call_soon(task.cancel)

        stream.on_cancel = call_off

    def refuse(self, stream: Stream, request: FrameReceived, failure: Failure) -> None:
        stream.release(request)
        self._fail(stream, failure)

    async def _answer(self, call: RelayCall, handler: Handler) -> None:
        stream = call.stream
        try:
            failure = await self._outcome(call, handler)
            if failure is not None and not stream.over:
                await stream.drain()  # what was said before is heard first
        except asyncio.CancelledError:  # by the client, or with its session: the task ends here either way
            failure = CANCELLED
        except ConnectionLost:
            return  # nobody is there to be told
        if failure is not None:
            self._fail(stream, failure)

    async def _outcome(self, call: RelayCall, handler: Handler) -> Failure | None:
        """What the request ends with besides its answer."""
        try:
            await handler(call)
        except NodeError as error:
            return failure_of(error)
        except RemoteError as error:
            call.stream.break_off(error)
        except Cancelled:
            return CANCELLED
        except StreamEnded:
            return TOO_SHORT
        except ConnectionLost:
            return None
        except Exception:  # top of the task
            log.exception("%s of %s broke off", call.request.type.name, call.session.owner)
            return INTERNAL
        if call.stream.over:
            return None
        log.error("%s of %s was left without an end", call.request.type.name, call.session.owner)
        return INTERNAL

    def _fail(self, stream: Stream, failure: Failure) -> None:
        if stream.over:
            return
        self._counters.failures[failure.code.name] += 1
        stream.fail(failure.code, failure.text, retry_after_ms=failure.retry_after_ms, details=failure.details)
