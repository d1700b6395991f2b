"""The page's shell: what is served to whom, and under which rules browsers run it."""

from __future__ import annotations

import re

import pytest

from gpu_node.api.access import rules_of
from tests.gpu_node.serving import serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PARTS = ("app.js", "bars.js", "bars.css", "style.css", "index.html")


async def test_browsers_get_the_page_and_programs_the_line() -> None:
    async with serving() as served:
        page = await served.client.get("/", headers=BROWSER)
        plain = [await served.client.get("/"), await served.client.get("/", headers={"Accept": "*/*"})]
        head = await served.client.head("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Potluck GPU node</title>" in page.text
    for reply in (*plain, head):
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert {reply.text for reply in plain} == {"Potluck GPU node is running"}
    assert {reply.headers["vary"] for reply in (page, *plain)} == {"Accept"}


async def test_the_page_runs_its_own_script_only() -> None:
    async with serving() as served:
        page = await served.client.get("/", headers=BROWSER)
        scripts = [(await served.client.get(f"/page/{name}")).text for name in ("app.js", "bars.js")]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)", page.text), "no inline script"
    assert not re.search(r"\son\w+=|style=", page.text), "no inline handlers or styles"
    assert not re.findall(r"(?:src|href)=\"(?!/|data:)[^\"]+", page.text), "nothing from elsewhere"
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"):
        assert not any(way in script for script in scripts)


async def test_every_part_that_the_page_names_is_there() -> None:
    async with serving() as served:
        page = await served.client.get("/", headers=BROWSER)
        named = re.findall(r"/page/([\w.]+)", page.text)
        kinds = {name: (await served.client.get(f"/page/{name}")).headers["content-type"] for name in PARTS}
        policies = {name: (await served.client.get(f"/page/{name}")).headers for name in PARTS}
    assert set(named) < set(PARTS)
    assert {kind.partition(";")[0] for kind in kinds.values()} == {"text/javascript", "text/css", "text/html"}
    assert all(headers["x-content-type-options"] == "nosniff" for headers in policies.values())


@pytest.mark.parametrize("name", ["../api/app.py", "..%2fmetrics.py", "nothing", "app.js/", ""])
async def test_nothing_else_is_served(name: str) -> None:
    async with serving() as served:
        reply = await served.client.get(f"/page/{name}")
    assert reply.status_code == 404


async def test_the_shell_is_open_where_keys_are_asked_for() -> None:
    async with serving(rules=rules_of(("anna:secret",), (), ())) as served:
        shell = [(await served.client.get(path, headers=BROWSER)).status_code for path in ("/", "/page/app.js")]
        facts = await served.client.get("/health", headers=BROWSER)
        program = await served.client.get("/")
    assert (shell, facts.status_code, program.status_code) == ([200, 200], 401, 401)
