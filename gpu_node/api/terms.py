"""On whose behalf and how urgently a request runs: the fields that every text request of both dialects may carry.

`priority` and `deadline_s` are named as the gateway names them. Pure but for the clock that is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.requests import Request

from gpu_node.engine.sequence import GenerationRequest
from gpu_node.errors import RequestError

ASKER = "potluck.asker"  # the key in the ASGI scope
MOST_PRIORITY = 1000
# A day: whoever wants longer wants no deadline.
LONGEST_DEADLINE_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Asker:
    caller: str = ""
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    asker: Asker = Asker()
    priority: int = 0
    deadline: float | None = None

    def put_on(self, request: GenerationRequest) -> GenerationRequest:
        return replace(
            request,
            priority=self.priority,
            deadline=self.deadline,
            caller=self.asker.caller,
            cache_salt=self.asker.salt,
        )


def asker_of(request: Request) -> Asker:
    asker = request.scope.get(ASKER)
    return asker if isinstance(asker, Asker) else Asker()


def read_terms(asker: Asker, priority: int | None, deadline_seconds: float | None, clock: Callable[[], float]) -> Terms:
    """Raises `RequestError` for values out of range."""
    if priority is not None and abs(priority) > MOST_PRIORITY:
        raise RequestError(f"priority must lie between -{MOST_PRIORITY} and {MOST_PRIORITY}", field="priority")
    if deadline_seconds is None:
        return Terms(asker, priority or 0)
    if not 0 < deadline_seconds <= LONGEST_DEADLINE_SECONDS:
        raise RequestError(
            f"deadline_s must be above 0 and at most {LONGEST_DEADLINE_SECONDS:.0f} seconds", field="deadline_s"
        )
    return Terms(asker, priority or 0, clock() + deadline_seconds)
