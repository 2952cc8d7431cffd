"""The pages in a real Chromium, before a real server, with devices that come and go.

The tests build on one another's fleet, in the order in which they stand here.
"""

import http.client
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from edgeml.fleet import auth
from edgeml.fleet.store import Store
from edgeml.fleet.views import RolloutRequest
from edgeml.gates import HealthGate, LabelGate
from tests.browser.conftest import log_in, watched
from tests.support.fleetlet import tiny_bundle

pytestmark = pytest.mark.xdist_group("browser")
ROOT = Path(__file__).resolve().parents[2]
GATES = (HealthGate(soak=2.0), LabelGate(minimum=150, patience=60.0))
SITES = ("berlin", "oslo", "turin")


def start(server, version, **options):
    request = RolloutRequest("digits", version, gates=GATES, **options)
    return server.client.create(request).id


def ended(swarm, rollout, state, seconds=40):
    def there(client):
        row = client.rollout(rollout).row
        assert row.state == state or row.state not in {"done", "rolled_back", "aborted"}, row
        return row.state == state and row

    return swarm.wait(there, seconds)


def fill(swarm):
    """About two dozen devices, and three versions in the registry."""
    for i in range(1, 25):
        kind = ("cam", "gate", "press")[i % 3]
        swarm.add(f"{kind}-{i:02}", site=SITES[i % 3], line=str(i % 4))
    for number, version in enumerate(("1.0.0", "2.0.0", "2.1.0", "3.0.0")):
        bundle = tiny_bundle(
            swarm.server.folder.parent / version, "digits", version, 188_000, number
        )
        swarm.server.client.push(bundle.path)


def test_who_is_not_logged_in_sees_nothing(browser, server):
    with watched(browser, server, fine=["401"]) as page:
        page.goto(server.url + "/devices/cam-01")
        expect(page).to_have_url(server.url + "/login?next=/devices/cam-01")
        log_in(page, server, "not the password")
        expect(page.locator("#wrong")).to_have_text("name and password do not fit")
        assert page.evaluate("document.cookie") == ""
    host, port = server.url.removeprefix("http://").split(":")
    for path, status in (("/_nicegui_ws/socket.io/?EIO=4&transport=polling", 401),
                         ("/api/v1/devices", 401), ("/api/v1/nothing", 404)):  # fmt: skip
        connection = http.client.HTTPConnection(host, int(port))
        connection.request("GET", path)
        reply = connection.getresponse()
        assert reply.status == status, path
        connection.close()


def test_login_leads_to_the_page_that_was_asked_for_and_logout_away(browser, server):
    with watched(browser, server) as page:
        page.goto(server.url + "/models")
        log_in(page, server)
        expect(page).to_have_url(server.url + "/models")
        expect(page.locator("h1")).to_have_text("Models")
        other = page.context.new_page()
        other.goto(server.url + "/")
        other.click("text=Log out")
        expect(other).to_have_url(server.url + "/login")
        expect(page).to_have_url(server.url + "/login")  # the other page notices by itself
        page.goto(server.url + "/rollouts")
        expect(page).to_have_url(server.url + "/login?next=/rollouts")


def test_a_foreign_address_is_not_followed_after_the_login(browser, server):
    with watched(browser, server) as page:
        page.goto(server.url + "/login?next=//elsewhere.example/")
        log_in(page, server)
        expect(page).to_have_url(server.url + "/")


def test_an_empty_fleet_says_what_to_type(page, server):
    for path, command in (("/", "edgeml fleet enrol"), ("/devices", "edgeml fleet enrol"),
                          ("/models", "edgeml registry push"),
                          ("/rollouts", "edgeml fleet deploy")):  # fmt: skip
        page.goto(server.url + path)
        expect(page.locator(".empty pre").first).to_contain_text(command)


def test_what_is_not_there_is_said(browser, server, session):
    with watched(browser, server, fine=["404"], storage_state=session) as page:
        page.goto(server.url + "/devices/nobody")
        expect(page.locator("main")).to_contain_text("no device 'nobody'")
        page.goto(server.url + "/nowhere")
        expect(page.locator("main")).to_contain_text("there is no such page")


def test_devices_appear_without_a_reload(page, server, swarm):
    page.goto(server.url + "/devices")
    page.evaluate("window.same = true")
    fill(swarm)
    expect(page.locator('[data-filter="all"] b')).to_have_text("24")
    row = page.locator('.ag-row[row-id="cam-03"]').first
    expect(row).to_contain_text("cam-03")
    swarm.devices["cam-03"].leave()
    cells = page.locator('.ag-row[row-id="cam-03"]')
    expect(cells.filter(has_text="offline")).to_be_visible()
    page.click('[data-filter="offline"]')
    expect(page.locator(".ag-center-cols-container .ag-row")).to_have_count(1)
    page.click('[data-filter="all"]')
    page.fill(".search", "site=oslo")
    expect(page.locator(".ag-center-cols-container .ag-row")).to_have_count(8)
    assert page.evaluate("window.same")


def test_a_rollout_is_seen_as_it_goes(page, server, swarm):
    ended(swarm, start(server, "1.0.0", strategy="all-at-once"), "done")
    swarm.devices["gate-10"].degrade("OpenVINO does not load: onnxruntime serves instead")
    rollout = start(server, "2.0.0")
    page.goto(f"{server.url}/rollouts/{rollout}")
    page.evaluate("window.same = true")
    expect(page.locator(".step.current")).to_contain_text("Wave 1")
    expect(page.locator(".step.current")).to_contain_text(
        re.compile("[56] committed")  # the device that is away may be among the six
    )
    expect(page.locator(".step.passed")).to_contain_text("Wave 1")
    expect(page.locator('[data-state="done"]')).to_be_visible(timeout=40_000)
    expect(page.locator(".step.passed")).to_have_count(2)
    assert page.evaluate("window.same")


def test_pause_asks_first_and_viewers_see_no_buttons(page, browser, server, swarm):
    server.client.set_alias("digits", "prod", "2.0.0")
    swarm.traffic = False  # so that the gates wait
    rollout = start(server, "2.1.0")
    try:
        page.goto(f"{server.url}/rollouts/{rollout}")
        page.click(".actions .pause")
        expect(page.locator(".question")).to_contain_text("No further wave")
        page.fill(".question input", "lunch")
        page.click(".question .confirm")
        expect(page.locator('[data-state="paused"]')).to_contain_text("lunch (admin)")
        expect(page.locator(".actions .resume")).to_be_visible()
        store = Store.at(server.folder / "fleet.db")
        with store.write() as db:
            auth.add_user(db, "eve", "only looks", "viewer", 0.0)
        store.close()
        with watched(browser, server) as other:
            other.goto(f"{server.url}/login?next=/rollouts/{rollout}")
            other.fill("[name=user]", "eve")
            other.fill("[name=password]", "only looks")
            other.click("button")
            expect(other.locator('[data-state="paused"]')).to_be_visible()
            expect(other.locator(".actions .resume")).to_be_hidden()
        page.click(".actions .abort")
        page.click(".question .confirm")
        expect(page.locator('[data-state="aborted"]')).to_be_visible()
        expect(page.locator(".actions .abort")).to_be_hidden()
    finally:
        swarm.traffic = True


def test_a_rollback_says_why(page, server, swarm):
    """Version 3 installs, and is poor by labels: the page says so, with figures."""
    swarm.accuracy["3.0.0"] = 0.7
    rollout = start(server, "3.0.0")
    page.goto(f"{server.url}/rollouts/{rollout}")
    page.evaluate("window.same = true")
    expect(page.locator('[data-state="rolled_back"]')).to_be_visible(timeout=40_000)
    told = page.locator(".callout")
    expect(told).to_contain_text("labels gate: accuracy")
    expect(told).to_contain_text("95 % interval")
    expect(page.locator(".step.stopped")).to_contain_text("Wave 1")
    gate = page.locator(".gate.fail")
    expect(gate).to_contain_text("Labels gate")
    expect(gate.locator("svg.interval")).to_have_count(3)
    assert page.evaluate("window.same")
    page.goto(server.url + "/models")
    quarantined = page.locator(".version", has_text="3.0.0")
    expect(quarantined).to_contain_text("must not run: labels gate")


def test_a_device_tells_its_story(page, server, swarm):
    page.goto(server.url + "/devices/gate-10")
    expect(page.locator(".callout")).to_contain_text("OpenVINO does not load")
    expect(page.locator("svg.chart").first).to_be_visible()
    expect(page.locator("main")).to_contain_text("goes back to")
    expect(page.locator(".event", has_text="digits 2.0.0 serves now").first).to_be_visible()
    expect(page.locator("tr", has_text="digits 2.0.0").locator("svg.interval")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture(browser, server, session, swarm, theme):
    """A busy fleet, as the README shows it; narrow screens need no scrolling sideways."""
    with watched(browser, server, storage_state=session, color_scheme=theme) as page:
        page.goto(server.url + "/")
        expect(page.locator(".going")).to_contain_text("rolled back")
        expect(page.locator("svg.chart")).to_be_visible()
        page.wait_for_function("document.fonts.ready.then(() => true)")
        (ROOT / "build").mkdir(exist_ok=True)
        name = "dashboard.png" if theme == "light" else "dashboard-dark.png"
        made = swarm.server.folder.parent / name
        page.screenshot(path=made)
        shutil.copy(made, ROOT / "build" / name)
        for width in (1280, 800):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_name_from_a_device_is_never_code(page, server, swarm):
    swarm.devices["press-05"].say("strange", "info", "<img src=x onerror=window.bad=1>")
    page.goto(server.url + "/")
    expect(page.locator(".event", has_text="<img src=x").first).to_be_visible()
    assert page.evaluate("window.bad === undefined")


def test_a_thousand_devices_are_still_quick(page, server, swarm):
    for i in range(1000):
        swarm.add(f"big-{i:04}")
        if i % 200 == 199:  # a broker keeps a thousand messages for a reader that is behind
            swarm.wait(lambda c, n=24 + i + 1: len(c.devices()) == n)
    page.goto(server.url + "/devices")
    expect(page.locator('[data-filter="all"] b')).to_have_text("1024", timeout=30_000)
    rows = page.locator(".ag-center-cols-container .ag-row")
    expect(rows.first).to_be_visible()
    assert rows.count() < 100  # only what is in view is drawn
    page.fill(".search", "big-0777")
    expect(rows).to_have_count(1)
    page.locator(".ag-row a", has_text="big-0777").click()
    expect(page.locator("h1")).to_contain_text("big-0777")


def test_nothing_is_written_beside_the_data(server, swarm):
    """The pages' framework keeps nothing, neither in the current folder nor in the data."""
    assert not (server.folder.parent / ".nicegui").exists()
    assert not (server.folder / "nicegui").exists()
