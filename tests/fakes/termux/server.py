"""Two small servers of the fake Termux: the Ollama that a stub `ollama serve` becomes, and a gateway that lets in.

    python server.py ollama PORT        its models are the manifests below $HOME/.ollama/models
    python server.py gateway PORT       logs to $FAKE/gateway.log, answers as $FAKE/gateway_answer says

The standard library only and little of it, because every test of the set-up script starts some. Faults are files below
$FAKE: `pull_breaks` (how many downloads break off), `pull_error`, `slow_speed`, `mute` (generates nothing).
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
STORE = Path(os.environ.get("OLLAMA_MODELS") or Path(os.environ["HOME"]) / ".ollama" / "models")
PART_BYTES = 4_000_000


def fault(name: str) -> str:
    path = FAKE / name
    return path.read_text().strip() if path.exists() else ""


def log(name: str, text: str) -> None:
    with (FAKE / name).open("a") as file:
        file.write(text + "\n")


def field(body: str, name: str) -> str:
    _, _, rest = body.partition(f'"{name}":"')
    return rest.partition('"')[0]


def manifest_of(model: str) -> Path:
    name, _, tag = model.partition(":")
    return STORE / "manifests" / "registry.ollama.ai" / "library" / name / (tag or "latest")


def names() -> list[str]:
    library = STORE / "manifests" / "registry.ollama.ai" / "library"
    return sorted(f"{path.parent.name}:{path.name}" for path in library.glob("*/*"))


def reply(status: str, body: str) -> bytes:
    data = body.encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


def pull(model: str) -> bytes:
    """Half of the file in a first try that breaks off, the rest in the next one; only what is new counts as sent."""
    if error := fault("pull_error"):
        return reply("200 OK", f'{{"error":"{error}"}}')
    partial = STORE / "blobs" / "sha256-fake-partial"
    had = partial.stat().st_size if partial.exists() else 0
    log("pulls.log", f"{model} from {had}")
    breaks = int(fault("pull_breaks") or 0)
    partial.parent.mkdir(parents=True, exist_ok=True)
    lines = ['{"status":"pulling manifest"}', f'{{"status":"pulling","total":{PART_BYTES},"completed":{had}}}']
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
    if breaks:
        (FAKE / "pull_breaks").write_text(str(breaks - 1))
        with partial.open("ab") as file:
            file.truncate(had + 1000)
        return head + ("\n".join(lines) + "\n").encode()
    partial.unlink(missing_ok=True)
    path = manifest_of(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    lines += [f'{{"status":"pulling","total":{PART_BYTES},"completed":{PART_BYTES}}}', '{"status":"success"}']
    return head + ("\n".join(lines) + "\n").encode()


def generate() -> bytes:
    if fault("mute"):
        return reply("500 Internal Server Error", '{"error":"model requires more system memory"}')
    speed = float(fault(f"speed_{os.environ.get('FAKE_WHERE', 'native')}") or 12.5)
    return reply("200 OK", f'{{"response":"Salt.","done":true,"eval_count":25,"eval_duration":{int(25e9 / speed)}}}')


def answer_ollama(method: str, path: str, body: str, headers: str) -> bytes:
    listed = ",".join(f'{{"name":"{name}","size":1}}' for name in names())
    if path == "/api/version":
        return reply("200 OK", '{"version":"0.31.1"}')
    if path in ("/api/tags", "/api/ps"):
        return reply("200 OK", f'{{"models":[{listed}]}}')
    if path == "/api/pull":
        return pull(field(body, "model"))
    if path == "/api/generate":
        log("generated.log", body)
        return generate()
    if path == "/api/delete" and method == "DELETE":
        manifest_of(field(body, "model")).unlink(missing_ok=True)
        return reply("200 OK", "")
    return reply("404 Not Found", "404 page not found")


def download(headers: str) -> bytes:
    """The archive of Ollama, whole or from where the client has it; `cut` sends half and hangs up."""
    data = b"archive!" * 100
    start = 0
    for line in headers.splitlines():
        if line.lower().startswith("range: bytes="):
            start = int(line.split("=")[1].rstrip("-"))
    log("downloads.log", f"from {start}")
    if start >= len(data):
        return reply(f"416 Range Not Satisfiable\r\nContent-Range: bytes */{len(data)}", "no more")
    rest = data[start:]
    status = f"206 Partial Content\r\nContent-Range: bytes {start}-{len(data) - 1}/{len(data)}" if start else "200 OK"
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(rest)}\r\nConnection: close\r\n\r\n".encode()
    if fault("cut"):
        (FAKE / "cut").unlink()
        return head + rest[: len(rest) // 2]
    return head + rest


def answer_gateway(method: str, path: str, body: str, headers: str) -> bytes:
    if path.startswith("/download/"):
        if path.endswith(".tar.zst") and not fault("no_zst"):
            return reply("200 OK", "") if method == "HEAD" else download(headers)
        if path.endswith(".tgz") and fault("no_zst"):
            return reply("200 OK", "") if method == "HEAD" else download(headers)
        return reply("404 Not Found", "")
    bearer = next((line[22:] for line in headers.splitlines() if line.lower().startswith("authorization: bearer")), "-")
    log("gateway.log", f"{method} {path} {bearer} {body}")
    known = '{"id":"x","name":"attic \\"5\\"","phone_token":"own-secret","report_url":"/api/phones/report"}'
    if bearer != "-" and fault("forgotten"):
        return reply("401 Unauthorized", '{"error":{"message":"Who are you?"}}')
    if path == "/api/phones/report":
        return reply("204 No Content", "")
    return reply(fault("gateway_status") or "200 OK", fault("gateway_answer") or known)


def read_request(connection: socket.socket) -> tuple[str, str, str, str]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, _, headers = head.decode().partition("\r\n")
    length = next((int(line[15:]) for line in headers.splitlines() if line.lower().startswith("content-length:")), 0)
    while len(body) < length:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError
        body += more
    method, path, _ = first.split(" ")
    return method, path, body.decode(), headers


def main(kind: str, host: str, port: int) -> None:
    answer = answer_ollama if kind == "ollama" else answer_gateway
    with socket.create_server((host, port)) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(answer(*read_request(connection)))
                except (ConnectionError, OSError):
                    continue


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
