"""The invitation on the page in headless Chromium: its line and code, addresses, the end of it, and who has joined."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.api.invitations import qr_svg
from tests.fakes.browser import Browser, Chromium, playwright
from tests.server.api.gateway import gateway, until
from tests.server.dashboard_page import MARKUP, Drawer, page_of

# The loop is the one that drives the browser of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")
LINE = "document.getElementById('invite-command').value"
CODE = "document.querySelector('#invite-code img')"


def token_of(line: str) -> str:
    return line.partition("/join/")[2].partition("'")[0]


async def invited(browser: Browser) -> str:
    """The line of a new invitation."""
    await browser.page.click("#invite-open")
    await browser.shows("#invite-until", "Good for one phone, until")
    return await browser.page.input_value("#invite-command")


async def nothing_stays(browser: Browser) -> None:
    assert await browser.page.input_value("#invite-command") == ""
    assert "/join/" not in await browser.page.content()
    await playwright.expect(browser.page.locator("#invite-made")).to_be_hidden()


def answering(change: Callable[[dict[str, Any]], None]) -> Callable[[Any], Any]:
    """The gateway's answer, changed on its way."""

    async def fulfil(route: Any) -> None:
        answer = await route.fetch()
        told = await answer.json()
        change(told)
        await route.fulfill(response=answer, json=told)

    return fulfil


async def test_an_invitation_is_a_code_and_a_line_and_is_forgotten(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    async with page_of(chromium, drawer.page(), viewport={"width": 360, "height": 740}) as browser:
        line = await invited(browser)
        assert "http://192.168.1.2:" in line and line.startswith("curl ") and line.endswith("' | bash")
        await browser.page.wait_for_function(f"() => {CODE}?.naturalWidth > 0")
        await playwright.expect(browser.page.locator("#invite-address")).to_be_hidden()
        assert await browser.page.evaluate("document.documentElement.scrollWidth") <= 360
        await browser.page.click("#invite-again")
        await browser.page.wait_for_function(f"() => {LINE} && {LINE} !== {line!r}")
        await browser.page.keyboard.press("Escape")
        await playwright.expect(browser.page.locator("#invite")).to_be_hidden()
        await playwright.expect(browser.page.locator("#invite-open")).to_be_focused()
        await nothing_stays(browser)
        held: list[Any] = []
        await browser.page.route("**/api/phones/invite", lambda route: held.append(route))
        await browser.page.keyboard.press("Enter")
        await browser.shows("#invite-news", "Making an invitation")
        await until(lambda: held)  # the page says so before the browser has asked
        await browser.page.click("#invite-close")
        answer = await held[0].fetch()
        async with browser.page.expect_response("**/api/phones/invite"):
            await held[0].fulfill(response=answer)
        async with browser.page.expect_response("**/health"):
            pass  # what comes after the dialog was closed is not shown
        await playwright.expect(browser.page.locator("#invite")).to_be_hidden()
        await nothing_stays(browser)


async def test_the_line_is_copied_by_keyboard(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    async with page_of(chromium, drawer.page(), permissions=["clipboard-read", "clipboard-write"]) as browser:
        await browser.shows("#fleet-title", "Fleet")
        await browser.page.focus("#invite-open")
        await browser.page.keyboard.press("Enter")
        await browser.shows("#invite-until", "left")
        await playwright.expect(browser.page.locator("#invite-copy")).to_be_focused()
        await browser.page.keyboard.press("Enter")
        await browser.shows("#invite-copy", "Copied")
        await browser.shows("#invite-news", "The line is copied.")
        line = await browser.page.input_value("#invite-command")
        assert line and await browser.page.evaluate("navigator.clipboard.readText()") == line
        # as on a page without TLS, where the browser has no clipboard for scripts
        await browser.page.evaluate("navigator.clipboard.writeText('')")
        await browser.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        await browser.page.click("#invite-again")
        await browser.page.wait_for_function(f"() => {LINE} && {LINE} !== {line!r}")
        await browser.page.click("#invite-copy")
        await browser.shows("#invite-copy", "Copied")


async def test_one_of_several_addresses_is_chosen(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)

    def other_way(told: dict[str, Any]) -> None:
        url = told["links"][0]["url"].replace("192.168.1.2", "10.1.1.1")
        command = told["command"].replace("192.168.1.2", "10.1.1.1")
        code = {"command": command, "qr_svg": qr_svg(command)}
        told["links"].append({"url": url, "address": "10.1.1.1", "interface": MARKUP, **code})

    async with page_of(chromium, drawer.page()) as browser:
        await browser.page.route("**/api/phones/invite", answering(other_way))
        line = await invited(browser)
        code = await browser.page.get_attribute("#invite-code img", "src")
        options = browser.page.get_by_label("The phone reaches the gateway at").locator("option")
        await playwright.expect(options).to_have_count(2)
        await playwright.expect(options.nth(1)).to_have_text(f"10.1.1.1 ({MARKUP})")
        await browser.page.select_option("#invite-address", index=1)
        assert await browser.page.input_value("#invite-command") == line.replace("192.168.1.2", "10.1.1.1")
        assert await browser.page.get_attribute("#invite-code img", "src") != code
        await browser.page.wait_for_function(f"() => {CODE}?.naturalWidth > 0")
        await browser.page.select_option("#invite-address", index=0)
        assert await browser.page.input_value("#invite-command") == line
        assert await browser.page.get_attribute("#invite-code img", "src") == code
        await browser.page.unroute_all(behavior="wait")


async def test_the_page_notices_that_the_phone_has_joined(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows("#no-nodes", "invite one")
        token = token_of(await invited(browser))
        await drawer.add(20, MARKUP, token)
        await browser.shows("#invite-news", f"{MARKUP} has joined.")
        await nothing_stays(browser)
        await playwright.expect(browser.page.locator("#invite-again")).to_be_focused()
        await browser.shows("#invite-again", "Invite another phone")
        await browser.page.click("#invite-again")
        await browser.shows("#invite-until", "left")
        await browser.page.click("#invite-close")
        await drawer.add(21, "Pixel 6")  # by an invitation from elsewhere
        await browser.shows("#news", "Pixel 6 has joined.")
        await browser.shows("#fleet-summary", "2 free")
        assert "joined" not in await browser.page.inner_text("#invite")


async def test_a_known_phone_that_registers_anew_has_joined_too(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    node = await drawer.add(20, "Pixel 5")
    async with page_of(chromium, drawer.page()) as browser:
        await browser.shows(f"[data-node='{node}'] .foot button", "Drain")
        token = token_of(await invited(browser))
        drawer.stand.now += 60.0
        await drawer.add(21, "Pixel 6")  # by an invitation from elsewhere
        await browser.shows("#invite-news", "Pixel 6 has joined. This invitation is still good.")
        assert await browser.page.input_value("#invite-command")
        await drawer.add(20, "Pixel 5", token)
        await browser.shows("#invite-news", "Pixel 5 has joined.")
        await nothing_stays(browser)
        await browser.shows("#news", "Pixel 5 has joined.")
        drawer.joining.registered_at.clear()  # as in a gateway that was started anew
        for number in (22, 23):
            await drawer.add(number, f"Pixel {number}")
        await browser.shows("#news", "Pixel 23")
        assert "Pixel 5" not in await browser.page.inner_text("#news")


async def test_an_invitation_is_withdrawn(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    async with page_of(chromium, drawer.page()) as browser:
        await invited(browser)
        await browser.page.focus("#invite-withdraw")
        await browser.page.keyboard.press("Enter")
        await browser.shows("#invite-news", "The invitation is withdrawn")
        assert [*drawer.joining.invitations] == []
        await nothing_stays(browser)
        await playwright.expect(browser.page.locator("#invite-again")).to_be_focused()
        await browser.page.click("#invite-again")
        await browser.shows("#invite-until", "left")
        await browser.page.route("**/api/phones/invitations/*", lambda route: route.abort())
        await browser.page.click("#invite-withdraw")
        await browser.shows("#invite-error", "The gateway does not answer.")
        assert await browser.page.input_value("#invite-command")  # it is still good
        await browser.page.unroute_all(behavior="wait")
        for one in [*drawer.joining.invitations]:
            drawer.joining.withdraw(one.id)
        await browser.page.click("#invite-withdraw")
        await browser.shows("#invite-news", "This invitation is over already.")
        await nothing_stays(browser)


async def test_invitations_of_closed_dialogs_are_withdrawn_from_the_list(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    async with page_of(chromium, drawer.page()) as browser:
        await invited(browser)
        await playwright.expect(browser.page.locator("#invite-others")).to_be_hidden()
        await browser.page.keyboard.press("Escape")
        line = await invited(browser)
        listed = browser.page.locator("#invite-other-list li")
        await playwright.expect(listed).to_have_count(1)
        await playwright.expect(listed).to_contain_text("Made at")
        await listed.get_by_role("button", name="Withdraw the one made at").click()
        await playwright.expect(browser.page.locator("#invite-others")).to_be_hidden()
        await playwright.expect(browser.page.locator("#invite-copy")).to_be_focused()
        assert await browser.page.input_value("#invite-command") == line
        assert len([*drawer.joining.invitations]) == 1


async def test_an_invitation_that_expires_goes_by_the_gateways_clock(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)

    def soon(told: dict[str, Any]) -> None:
        told["expires_at"] = datetime.fromtimestamp(time.time() + 12, UTC).isoformat()

    async with page_of(chromium, drawer.page()) as browser:
        await browser.page.clock.set_system_time(datetime.now(UTC).timestamp() + 3600.0)  # the browser is ahead
        assert await browser.page.evaluate("Date.now()") > 1000.0 * time.time() + 3e6
        await invited(browser)
        left = (await browser.page.inner_text("#invite-until")).rpartition(", ")[2]
        assert left.startswith(("15:0", "14:5")), left
        await browser.page.route("**/api/phones/invite", answering(soon))
        await browser.page.click("#invite-again")
        await browser.shows("#invite-until", "0:0")
        await browser.shows("#invite-news", "has expired")
        await nothing_stays(browser)
        await playwright.expect(browser.page.locator("#invite-copy")).to_be_hidden()
        await browser.page.unroute_all(behavior="wait")


async def test_on_loopback_the_page_says_how_to_invite(chromium: Chromium):
    async with page_of(chromium, gateway()) as browser:
        await browser.page.click("#invite-open")
        await browser.shows("#invite-error", "the gateway listens on this machine only")
        await browser.shows("#invite-error", "potluck serve --host 0.0.0.0")
        await playwright.expect(browser.page.locator("#invite-made")).to_be_hidden()
        await playwright.expect(browser.page.locator("#invite-copy")).to_be_hidden()
        await browser.shows("#invite-again", "Try again")


async def test_with_keys_the_phones_wait_for_one(chromium: Chromium, tmp_path: Path):
    drawer = Drawer.in_folder(tmp_path)
    node = await drawer.add(20, "Pixel 5")
    async with page_of(chromium, drawer.page(api_keys="anna:s3cret")) as browser:
        await browser.shows("#key-form", "asks for an API key")
        assert await browser.page.locator(".node").count() == 0
        await browser.page.fill("#key", "s3cret")
        await browser.page.press("#key", "Enter")
        await browser.page.click(f"[data-node='{node}'] .foot button")
        await browser.shows(f"[data-node='{node}'] .foot button", "Resume")
        assert token_of(await invited(browser))
        assert await browser.page.inner_text("#news") == "Pixel 5 gets nothing new."
