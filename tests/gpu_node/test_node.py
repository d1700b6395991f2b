"""The whole node as a process: what it prints, how it ends, and that it ends with its parent."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from gpu_node.durations import FOREVER
from gpu_node.inventory import Gpu
from gpu_node.load_wish import LoadWish
from gpu_node.manifest import models_folder, read_manifest
from gpu_node.model_source import GgufSource, HubSource, KnownSource
from gpu_node.node import accounts_of, asked_of, engine_options, stay_of
from gpu_node.settings import read_settings
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.process import PATIENCE_SECONDS, client_of, command, environment, running


def test_it_announces_itself_serves_and_ends_a_running_stream_with_an_error(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "Tiny-Llama", max_position_embeddings=8192)
    small = {"POTLUCK_NODE_MAX_RUNNING": "4", "POTLUCK_NODE_KV_MEMORY": "64MB"}
    with running(model, tmp_path, **small) as (process, event), client_of(event) as client:
        ports = {"port": event["port"], "relay_port": event["relay_port"]}
        assert event == {"event": "listening", "host": "127.0.0.1", **ports, "model": "tiny-llama"}
        assert all(isinstance(port, int) and port > 0 for port in ports.values())
        early = client.get("/api/version").json()  # listening begins at once
        assert early["potluck"] == {"continues_assistant": True, "slots": 4}
        body = {"model": "tiny-llama", "prompt": "the quick", "stream": False, "options": {"num_predict": 4}}
        answer = client.post("/api/generate", json=body).json()
        assert (answer["eval_count"], answer["done_reason"]) == (4, "length")
        assert client.get("/ready").status_code == 200
        endless = {"model": "tiny-llama", "prompt": "the", "temperature": 2, "max_tokens": 60_000, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json={**endless, "stream": True}) as reply:
            lines = filter(None, reply.iter_lines())
            assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["finish_reason"] is None
            process.send_signal(signal.SIGTERM)
            last = list(lines)[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the node is shutting down"
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert out == "", "one line on stdout and no more"
    assert "Traceback" not in err
    assert "tiny-llama is loaded" in err


def test_the_whole_api_on_a_real_model(tiny_folder: Path, tmp_path: Path) -> None:
    small = {"POTLUCK_NODE_MAX_RUNNING": "4", "POTLUCK_NODE_KV_BLOCKS": "64", "POTLUCK_NODE_MEMORY": "1GB"}
    with running(tiny_folder, tmp_path, **small) as (process, event), client_of(event) as client:
        name = str(event["model"])
        greedy = {"model": name, "temperature": 0, "max_tokens": 8}

        def asked(path: str, **body: object) -> httpx.Response:
            reply = client.post(path, json={**greedy, **body})
            assert reply.status_code == 200, reply.text
            return reply

        texts = [f"the quick {word}" for word in ("brown", "fox", "jumps", "over", "lazy", "dog")]
        alone = [asked("/v1/completions", prompt=text).json()["choices"][0]["text"] for text in texts]
        together = asked("/v1/batch/completions", prompts=texts).json()
        assert [result["choices"][0]["text"] for result in together["results"]] == alone
        choices = asked(
            "/v1/completions", prompt=texts[0], n=3, temperature=1, seed=5, logprobs=2, ignore_eos=True
        ).json()["choices"]
        assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [8] * 3
        guided = asked("/v1/completions", prompt="a", regex="[ab]{3}c").json()["choices"][0]["text"]
        assert re.fullmatch("[ab]{3}c", guided)
        infer = client.post("/api/infer", json={"model": name, "ids": [3, 4, 5], "last_only": True})
        rows, columns = int(infer.headers["x-potluck-rows"]), int(infer.headers["x-potluck-columns"])
        assert len(infer.content) == 4 * rows * columns and (rows, columns) == (1, 320)
        by_text = client.post("/v1/embeddings", json={"model": name, "input": "the quick"}).json()
        context = client.post(
            "/api/generate",
            json={"model": name, "prompt": "the quick", "raw": True, "options": {"num_predict": 1}, "stream": False},
        ).json()
        assert by_text["usage"]["prompt_tokens"] == context["prompt_eval_count"]
        assert sum(value * value for value in by_text["data"][0]["embedding"]) == pytest.approx(1, abs=1e-4)
        counted = client.get("/metrics").text
        assert f'potluck_node_model_loaded{{model="{name}"}} 1.0' in counted
        loaded = client.post("/api/models/load", json={"model": name, "weights": "int8", "context": 64}).json()
        assert (loaded["status"], loaded["context_length"], loaded["summary"]["weights"]) == ("success", 64, "int8")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0


def test_accounts_are_those_of_the_devices_that_may_be_used() -> None:
    gpu = Gpu(0, "GPU-1", "a GPU", 1000, 800)

    def budgets(found: tuple[Gpu, ...], **flags: object) -> list[tuple[str, int]]:
        settings = read_settings({"HOME": "/home/x"}, flags)
        return [(account.device, account.budget_bytes) for account in accounts_of(settings, found, 500, "2.0+cu1")]

    assert budgets(()) == [("cpu", 450)]
    assert budgets((gpu,)) == [("cuda", 720), ("cpu", 450)]
    assert budgets((gpu,), memory="7kB") == [("cuda", 7000), ("cpu", 450)]
    assert budgets((gpu,), device="cpu", memory="7kB") == [("cpu", 7000)]
    settings = read_settings({"HOME": "/home/x"}, {})
    assert [one.device for one in accounts_of(settings, (gpu,), 500, "2.0+cpu")] == ["cpu"]


def test_settings_reach_the_engine() -> None:
    options = engine_options(LoadWish(max_running=3, step_tokens=64, mixed_step_tokens=32, speculation="off"), 9)
    assert (options.max_running, options.max_waiting, options.max_drafts) == (3, 9, 0)
    assert (options.step_tokens, options.mixed_step_tokens) == (64, 32)
    assert engine_options(LoadWish(), 9).max_drafts > 0


def test_the_main_model_may_stay_for_ever_while_others_leave() -> None:
    settings = read_settings({}, {"keep_main": True, "keep_alive": "90s"})
    assert (stay_of(settings, True).keep_alive_seconds, stay_of(settings, False).keep_alive_seconds) == (FOREVER, 90)
    assert stay_of(read_settings({}, {}), True).keep_alive_seconds == 300


def test_what_the_fetching_process_is_told(tmp_path: Path) -> None:
    assert asked_of(HubSource("Organisation/Name")) == "Organisation/Name"
    assert asked_of(GgufSource(tmp_path / "a.gguf")) == str(tmp_path / "a.gguf")
    known = read_manifest(models_folder()).models[0]
    assert asked_of(KnownSource(known)) == known.name


def test_ctrl_c_during_the_load_ends_it_cleanly(tiny_folder: Path, tmp_path: Path) -> None:
    with running(tiny_folder, tmp_path) as (process, _):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_it_ends_when_its_stdin_ends(tiny_folder: Path, tmp_path: Path) -> None:
    with running(tiny_folder, tmp_path, "--exit-with-parent") as (process, _):
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        process.wait(PATIENCE_SECONDS)
    assert process.returncode == 0


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=sys.stdout, stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_it_does_not_outlive_a_parent_that_is_killed(tiny_folder: Path, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *command(tiny_folder, "--exit-with-parent")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert json.loads(parent.stdout.readline())["event"] == "listening"
    parent.kill()
    parent.wait()
    # The pipe that the child inherited as its stdout ends when the child does.
    parent.stdout.read()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child)
    parent.stdout.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_model_that_can_never_load_ends_it_with_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(tiny_folder, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"no weights")
    with running(torn, tmp_path) as (process, _):
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "not a whole safetensors file" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_node_with_keys_says_nothing_of_them(tiny_folder: Path, tmp_path: Path) -> None:
    keys = {"POTLUCK_API_KEYS": "anna:very-secret", "POTLUCK_STRATEGY": "of the gateway"}
    with (
        running(tiny_folder, tmp_path, "--host", "0.0.0.0", "--no-relay", **keys) as (process, event),
        client_of(event) as client,
    ):
        assert event["relay_port"] is None
        assert client.get("/api/tags").status_code == 401
        assert client.get("/api/tags", headers={"X-API-Key": "very-secret"}).status_code == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert "very-secret" not in out + err
    assert "without an API key" not in err


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "gpu_node", *arguments]
    return subprocess.run(
        whole, capture_output=True, text=True, env={**environment(Path("/nowhere")), **environ}, check=False
    )


def test_an_exposed_node_without_keys_warns(tiny_folder: Path, tmp_path: Path) -> None:
    with running(tiny_folder, tmp_path, "--host", "0.0.0.0", "--no-relay") as (process, _):
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert "without an API key: everybody in this network can use this model" in err


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port))
    assert done.returncode == 2
    assert done.stderr == f"cannot listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize(
    ("arguments", "environ", "told"),
    [
        (["--model", "/no/such"], {}, "there is no file or folder /no/such"),
        (["--model", "nothing"], {}, "'nothing' is unknown"),
        (["--port", "x"], {}, "--port: "),
        (["--host", "300.1.2.3"], {}, "cannot listen on 300.1.2.3"),
        (["--port", "0", "--relay-port", "0", "--host", "0.0.0.0"], {}, "only with a token: set POTLUCK_NODE_TOKEN"),
        (["--tls-certificate", "/no/such.pem"], {}, "/no/such.pem cannot be read"),
        ([], {"VRM_API_TOKEN": "two words\n"}, "VRM_API_TOKEN: a token is one line"),
        ([], {"POTLUCK_NODE_MODLE": "x"}, "did you mean POTLUCK_NODE_MODEL?"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(arguments: list[str], environ: dict[str, str], told: str) -> None:
    done = run(*arguments, **environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_is_there_without_importing_anything_heavy() -> None:
    code = (
        "import sys; from gpu_node.__main__ import parser; parser().format_help();"
        "print([m for m in ('torch', 'pydantic', 'uvicorn', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "--exit-with-parent" in run("--help").stdout
