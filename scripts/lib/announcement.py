"""Say what to try next, once the server answers: `announcement.py PID URL`.

Looks at /ready until it says yes or the process PID is gone, and prints then, so that the lines stand below the
server's own and are true when they appear. Only the standard library; never outlives the server.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
import time
from urllib.parse import urlsplit

from demo_fleet import is_alive

LOOK_SECONDS = 0.2
# After this long without a node that serves, a person wants to know where to look.
PATIENCE_SECONDS = 45.0
# A fetch of the model at the first start may take long; nobody reads the lines after an hour.
LONGEST_SECONDS = 3600.0
USUAL_URL = "http://127.0.0.1:8000"  # where the command looks by itself
# With keys set, /ready may ask for one: the gateway is up then, which is all that is asked here.
UP = frozenset({200, 204, 401, 403})


def main(arguments: list[str]) -> int:
    pid, url = int(arguments[0]), arguments[1]
    started = time.monotonic()
    told = False
    while is_alive(pid) and time.monotonic() - started < LONGEST_SECONDS:
        status = _status(url, "/ready")
        if status in UP:
            print(ready_text(url, with_key=bool(os.environ.get("POTLUCK_API_KEYS"))), flush=True)
            return 0
        if not told and time.monotonic() - started > PATIENCE_SECONDS and status is not None:
            told = True
            print(f"The gateway runs at {url}, but no node serves yet: {url}/health says why.", flush=True)
        time.sleep(LOOK_SECONDS)
    return 0


def ready_text(url: str, *, with_key: bool) -> str:
    key = "-H 'Authorization: Bearer YOUR_KEY' " if with_key else ""
    address = "" if url == USUAL_URL else f"--url {url} "
    question = "What is the capital of France?"
    return f"""
Potluck is ready. Try:

  curl -X POST {url}/ask {key}-H 'Content-Type: application/json' -d '{{"prompt": "{question}"}}'
  .venv/bin/potluck ask {address}"{question}"
  {url}/   shows the fleet live, with a box to ask

Ctrl-C stops it.
"""


def _status(url: str, path: str) -> int | None:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":  # our own server a moment ago: its name need not match the loopback address
        connection = http.client.HTTPSConnection(host, port, timeout=2, context=ssl._create_unverified_context())
    else:
        connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
