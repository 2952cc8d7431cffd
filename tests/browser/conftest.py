"""One server, one swarm of devices and one real Chromium for all tests of the pages."""

import contextlib
import re

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.support.swarm import FleetServer, Swarm
from tests.support.tools import chromium

FLAGS = (
    "--no-sandbox", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet") / "data"
    made = FleetServer(folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def swarm(server):
    made = Swarm(server)
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    """Not for the whole session: while Playwright is open, no test can have a loop of its own."""
    path = chromium()
    assert path, "no Chromium that starts: apt-get install chromium"
    with sync_playwright() as playwright:
        expect.set_options(timeout=15_000)
        made = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield made
        made.close()


def log_in(page, server, password=None):
    page.fill("[name=user]", server.user)
    page.fill("[name=password]", password or server.password)
    page.click("button")


@contextlib.contextmanager
def watched(browser, server, *, fine=(), **options):
    """A page on which nothing may go wrong, and from which nothing may go out."""
    context = browser.new_context(viewport={"width": 1400, "height": 850}, **options)
    page = context.new_page()
    page.set_default_timeout(15_000)
    wrong, asked = [], []
    page.on("console", lambda m: wrong.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url.replace("ws://", "http://")))
    yield page
    context.close()
    outside = [u for u in asked if not u.startswith((server.url + "/", "data:", "blob:"))]
    assert not outside
    assert asked
    assert not [text for text in wrong if not any(re.search(f, text) for f in fine)]


@pytest.fixture(scope="module")
def session(browser, server):
    """The cookies of one login."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    log_in(page, server)
    page.wait_for_url(server.url + "/")
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def page(browser, server, session):
    with watched(browser, server, storage_state=session) as made:
        yield made
