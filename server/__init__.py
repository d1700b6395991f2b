"""The gateway. `uvicorn server:app` finds the application here; it is built on first use, not on import."""

from __future__ import annotations

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from server.main import create_app

    globals()["app"] = create_app()
    return globals()["app"]
