"""What the gateway is measured beside, and how each is started: command, configuration, dialect.

Every one gets a single process or thread, the same nodes and no access log. Programs that are not installed are left
out by name, never silently.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.rig.mock import MODEL
from bench.rig.servers import Program
from bench.rig.wrk import Dialect

SLOTS_PER_NODE = 512  # so that no request ever waits for a node


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table: a program (None: the nodes themselves) and how it is spoken to."""

    name: str
    program: Program | None
    dialect: Dialect = "ollama"
    key: str = ""
    slow: bool = False  # answers too few in a few seconds to be counted


@dataclass(frozen=True, slots=True)
class Place:
    """Where things run: the core under test, the nodes' ports, a folder for configurations and logs."""

    core: int | None
    nodes: Sequence[int]
    folder: Path


def uvicorn(name: str, application: str, port: int, core: int | None, environment: dict[str, str]) -> Program:
    command = [sys.executable, "-m", "uvicorn", application, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--backlog", "2048"]
    return Program(name, command, port, "/ready" if name == "gateway" else "/api/version", core, environment)


def gateway(place: Place, port: int, settings: dict[str, str]) -> Program:
    """Everything on: queue, affinity, cache, metrics, one log line per request."""
    phones = [
        {"host": "127.0.0.1", "port": node, "name": f"phone-{node}", "max_concurrency": SLOTS_PER_NODE}
        for node in place.nodes
    ]
    fleet = place.folder / "phones.json"
    fleet.write_text(json.dumps(phones), encoding="utf-8")
    environment = {"POTLUCK_PHONES_FILE": str(fleet), "POTLUCK_EMBEDDED_NODE": "off", **settings}
    return uvicorn("gateway", "server:app", port, place.core, environment)


def passthrough(place: Place, port: int) -> Program:
    upstreams = ",".join(f"http://127.0.0.1:{node}" for node in place.nodes)
    return uvicorn("passthrough", "bench.passthrough:app", port, place.core, {"UPSTREAMS": upstreams})


def nginx(place: Place, port: int) -> Program | None:
    """None where it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        return None
    folder = place.folder / "nginx"
    folder.mkdir(exist_ok=True)
    config = folder / "nginx.conf"
    config.write_text(_nginx_config(folder, port, place.nodes), encoding="utf-8")
    return Program("nginx", [program, "-c", str(config), "-e", "stderr"], port, "/api/version", place.core)


def _nginx_config(folder: Path, port: int, nodes: Sequence[int]) -> str:
    servers = " ".join(f"server 127.0.0.1:{node};" for node in nodes)
    temporary = "".join(
        f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\nworker_processes 1;\nerror_log stderr crit;\npid {folder}/nginx.pid;\n"
        "events { worker_connections 8192; }\n"
        f"http {{\n  access_log off;\n{temporary}  client_body_buffer_size 128k;\n  keepalive_requests 1000000000;\n"
        f"  upstream nodes {{ {servers} keepalive 1024; keepalive_requests 1000000000; }}\n"
        f"  server {{\n    listen 127.0.0.1:{port} backlog=2048;\n    location / {{\n"
        '      proxy_pass http://nodes;\n      proxy_http_version 1.1;\n      proxy_set_header Connection "";\n'
        "      proxy_buffering off;\n      proxy_read_timeout 600s;\n    }\n  }\n}\n"
    )


def haproxy(place: Place, port: int) -> Program | None:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        return None
    config = place.folder / "haproxy.cfg"
    servers = "".join(f"  server n{node} 127.0.0.1:{node}\n" for node in place.nodes)
    config.write_text(
        "global\n  maxconn 8192\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n"
        f"  timeout server 600s\n  http-reuse always\nfrontend all\n  bind 127.0.0.1:{port} backlog 2048\n"
        f"  default_backend nodes\nbackend nodes\n  balance roundrobin\n{servers}",
        encoding="utf-8",
    )
    return Program("haproxy", [program, "-f", str(config), "-db"], port, "/api/version", place.core)


def litellm(place: Place, port: int, program: Path, provider: str) -> tuple[Program, str]:
    """LiteLLM's proxy without a database, and the key that it wants. `provider`: `openai` or `ollama_chat`."""
    key = f"sk-{secrets.token_hex(24)}"
    suffix = "/v1" if provider == "openai" else ""
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"{provider}/{MODEL}",
                "api_base": f"http://127.0.0.1:{node}{suffix}",
                "api_key": "none",
            },
        }
        for node in place.nodes
    ]
    config = place.folder / "litellm.yaml"  # JSON is YAML
    settings = {"model_list": models, "general_settings": {"master_key": key}, "litellm_settings": {"telemetry": False}}
    config.write_text(json.dumps(settings), encoding="utf-8")
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return Program("litellm", command, port, "/health/liveliness", place.core, environment), key
