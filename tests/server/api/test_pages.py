"""The page's shell: what is served to whom, and under which rules browsers run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server.api.gateway import ask, gateway, get

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_browsers_get_the_page_and_programs_the_sentence():
    app = gateway().app
    page = await get(app, "/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<title>Potluck</title>" in page.body
    for method, headers in (("GET", {}), ("GET", {"Accept": "*/*"}), ("HEAD", BROWSER)):
        plain = await ask(app, method, "/", headers=headers)
        assert plain.headers["content-type"] == "text/plain; charset=utf-8"
        assert plain.body == b"Ollama is running"


FOLDER = Path(__file__).parents[3] / "server" / "dashboard"
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
SCRIPTS = sorted(one.name for one in FOLDER.glob("*.js"))


@pytest.mark.parametrize("name", sorted(one.name for one in FOLDER.iterdir()))
async def test_its_parts(name: str):
    answer = await get(gateway().app, f"/dashboard/{name}")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(KINDS[Path(name).suffix])
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert answer.body == (FOLDER / name).read_bytes()


def test_what_the_page_asks_for_is_there():
    wanted = re.findall(r'"/dashboard/([\w.]+)"', (FOLDER / "index.html").read_text())
    for name in SCRIPTS:
        wanted += re.findall(r'from "\./([\w.]+)"', (FOLDER / name).read_text())
    assert {*wanted, "index.html"} == {one.name for one in FOLDER.iterdir()}


@pytest.mark.parametrize("name", ["../main.py", "..%2fmain.py", "nothing", "app.js/"])
async def test_nothing_else_is_served(name: str):
    assert (await get(gateway().app, f"/dashboard/{name}")).status == 404


async def test_the_page_runs_its_own_script_only():
    page = await get(gateway().app, "/", headers=BROWSER)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    text = page.body.decode()
    assert not re.search(r"<script(?![^>]*src=)", text), "no inline script"
    assert not re.search(r"\son\w+=|style=", text), "no inline handlers or styles"
    assert not re.findall(r"(?:src|href)=\"(?!/|data:)[^\"]+", text), "nothing from elsewhere"


@pytest.mark.parametrize("name", SCRIPTS)
async def test_the_scripts_set_text_and_never_markup(name: str):
    script = (await get(gateway().app, f"/dashboard/{name}")).body.decode()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"):
        assert way not in script


@pytest.mark.parametrize("name", ["bars.js", "bars.css"])
def test_a_split_is_drawn_as_on_the_nodes_own_page(name: str):
    root = Path(__file__).parents[3]
    assert (root / "server" / "dashboard" / name).read_text() == (root / "gpu_node" / "page" / name).read_text()
