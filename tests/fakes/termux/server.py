"""Two small servers of the fake Termux: the Ollama that a stub `ollama serve` becomes, and a gateway that lets in.

    main("ollama", HOST, PORT)        its models are the manifests below $HOME/.ollama/models
    main("gateway", HOST, PORT)       logs to $FAKE/gateway.log, answers as $FAKE/gateway_answer says

Two hundred of them are started in a run of the set-up script's tests, so a start must cost little: no module that is
not part of the interpreter or nearly so (pathlib and socket take three times as long as all else), and imported rather
than run, so that it is compiled once. Faults are files below $FAKE: `pull_breaks` (how many downloads break off),
`pull_error`, `slow_speed`, `mute` (generates nothing).
"""

from __future__ import annotations

import os
from _socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket

FAKE = os.environ["FAKE"]
STORE = os.environ.get("OLLAMA_MODELS") or os.environ["HOME"] + "/.ollama/models"
LIBRARY = STORE + "/manifests/registry.ollama.ai/library"
PART_BYTES = 4_000_000


def fault(name: str) -> str:
    try:
        with open(f"{FAKE}/{name}") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def log(name: str, text: str) -> None:
    with open(f"{FAKE}/{name}", "a") as file:
        file.write(text + "\n")


def field(body: str, name: str) -> str:
    _, _, rest = body.partition(f'"{name}":"')
    return rest.partition('"')[0]


def manifest_of(model: str) -> str:
    name, _, tag = model.partition(":")
    return f"{LIBRARY}/{name}/{tag or 'latest'}"


def names() -> list[str]:
    if not os.path.isdir(LIBRARY):
        return []
    return sorted(f"{name}:{tag}" for name in os.listdir(LIBRARY) for tag in os.listdir(f"{LIBRARY}/{name}"))


def reply(status: str, body: str) -> bytes:
    data = body.encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


def pull(model: str) -> bytes:
    """Half of the file in a first try that breaks off, the rest in the next one; only what is new counts as sent."""
    if error := fault("pull_error"):
        return reply("200 OK", f'{{"error":"{error}"}}')
    partial = f"{STORE}/blobs/sha256-fake-partial"
    had = os.path.getsize(partial) if os.path.exists(partial) else 0
    log("pulls.log", f"{model} from {had}")
    breaks = int(fault("pull_breaks") or 0)
    os.makedirs(f"{STORE}/blobs", exist_ok=True)
    lines = ['{"status":"pulling manifest"}', f'{{"status":"pulling","total":{PART_BYTES},"completed":{had}}}']
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
    if breaks:
        with open(f"{FAKE}/pull_breaks", "w") as left:
            left.write(str(breaks - 1))
        with open(partial, "ab") as file:
            file.truncate(had + 1000)
        return head + ("\n".join(lines) + "\n").encode()
    if os.path.exists(partial):
        os.unlink(partial)
    path = manifest_of(model)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as manifest:
        manifest.write("{}")
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
        os.unlink(manifest_of(field(body, "model")))
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
        os.unlink(f"{FAKE}/cut")
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


def read_request(connection: socket) -> tuple[str, str, str, str]:
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


def main(kind: str, host: str, port: str) -> None:
    answer = answer_ollama if kind == "ollama" else answer_gateway
    server = socket(AF_INET, SOCK_STREAM)
    server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    server.bind((host, int(port)))
    server.listen(16)
    while True:
        descriptor, _ = server._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
        connection = socket(fileno=descriptor)
        try:
            connection.sendall(answer(*read_request(connection)))
        except OSError:
            pass
        finally:
            connection.close()
