"""Devices: the table of all devices."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from edgeml.fleet.dashboard import look
from edgeml.fleet.dashboard.frame import Board, heading
from edgeml.fleet.dashboard.live import Snapshot
from edgeml.fleet.dashboard.traffic import Stats
from edgeml.fleet.views import DeviceRow, SlotRow

Row = dict[str, Any]


def reason_of(device: DeviceRow) -> str:
    """Return why a device is not as it should be; empty when it is."""
    for slot in device.slots:
        if slot.degraded:
            return slot.degraded
    for slot in device.slots:
        if slot.outcome in {"rolled_back", "refused"} and slot.detail:
            return slot.detail
    return "clock not trusted" if device.clock == "untrusted" else ""


def main_slot(device: DeviceRow) -> SlotRow:
    """Return the slot that a table has room for: one that is busy, or the first."""
    busy = [s for s in device.slots if s.phase not in {"", "idle"}]
    return (busy or list(device.slots) or [SlotRow(slot="")])[0]


def grid_row(device: DeviceRow, stats: Stats | None) -> Row:
    """Return what the table shows of a device."""
    slot = main_slot(device)
    more = f" +{len(device.slots) - 1}" if len(device.slots) > 1 else ""
    return {
        "device": device.device,
        "online": device.presence,
        "health": device.health,
        "profile": device.profile,
        "model": slot.model,
        "version": slot.version + more,
        "desired": slot.desired + more if slot.desired else "",
        "variant": slot.variant.removeprefix(f"{device.profile}."),
        "placement": slot.placement.removesuffix("ExecutionProvider"),
        "phase": slot.phase,
        "done": slot.progress[0],
        "all": slot.progress[1],
        "reason": reason_of(device),
        "seen": round(max(device.seen, stats.last if stats else 0.0)),
        "rate": round(stats.rate, 1) if stats else None,
        "p50": round(stats.p50_ms, 2) if stats and stats.p50_ms is not None else None,
        "p95": round(stats.p95_ms, 2) if stats and stats.p95_ms is not None else None,
        "tags": " ".join(f"{k}={v}" for k, v in sorted(device.tags.items())),
    }


def _columns() -> list[Row]:
    def column(field: str, name: str, width: int, cell: str = "", **more: Any) -> Row:
        made: Row = {"field": field, "headerName": name, "width": width, **more}
        if cell:
            made[":cellRenderer"] = f"edgeml.cells.{cell}"
        return made

    number = {"type": "rightAligned", "cellClass": "num"}
    return [
        column("device", "Device", 140, "device", pinned="left", sort="asc"),
        column("online", "State", 100, "state"),
        column("health", "Health", 114, "state"),
        column("version", "Runs", 160, "model"),
        column("phase", "Updater", 112, "phase"),
        column("rate", "Req/s", 76, "num(1)", **number),
        column("p50", "p50 ms", 84, "num(2)", **number),
        column("p95", "p95 ms", 84, "num(2)", **number),
        column(
            "reason", "Reason", 210, flex=1, minWidth=190, tooltipField="reason", cellClass="clip"
        ),
        column("variant", "Variant, placement", 200, "place"),
        column("seen", "Heard of", 112, "seen"),
        column("profile", "Profile", 130),
        column("tags", "Tags", 140),
    ]


class Table:
    """The table, and what the browser has of it."""

    def __init__(self, seen: Snapshot) -> None:
        """Draw it with the rows of now; later only what changes is sent."""
        self._sent = _rows(seen)
        self._grid = ui.aggrid(
            {
                "columnDefs": _columns(),
                "rowData": list(self._sent.values()),
                "defaultColDef": {"sortable": True, "resizable": True},
                ":getRowId": "params => params.data.device",
                ":onGridReady": "edgeml.grid.ready",
                ":onRowClicked": "edgeml.grid.open",
                ":isExternalFilterPresent": "edgeml.grid.filtered",
                ":doesExternalFilterPass": "edgeml.grid.passes",
                "rowHeight": 34,
                "headerHeight": 34,
                "animateRows": False,
                "suppressCellFocus": True,
                "tooltipShowDelay": 300,
                "asyncTransactionWaitMillis": 100,
                "overlayNoRowsTemplate": "No device fits",
            },
            auto_size_columns=False,
        ).classes("devices")

    def follow(self, seen: Snapshot) -> None:
        """Send the rows that have changed."""
        rows = _rows(seen)
        change: dict[str, list[Row]] = {"add": [], "update": [], "remove": []}
        for device, row in rows.items():
            if device not in self._sent:
                change["add"].append(row)
            elif row != self._sent[device]:
                change["update"].append(row)
        change["remove"] = [{"device": d} for d in self._sent if d not in rows]
        self._sent = rows
        if any(change.values()):
            self._grid.run_grid_method("applyTransactionAsync", change)


def _rows(seen: Snapshot) -> dict[str, Row]:
    return {
        d.device: grid_row(d, seen.stats.get(d.device) if d.online else None) for d in seen.devices
    }


def filters(seen: Snapshot) -> str:
    """Return the buttons that filter the table, each with its count."""
    devices = seen.devices
    online = sum(d.online for d in devices)
    counts = (
        ("all", "All", len(devices)),
        ("online", "Online", online),
        ("offline", "Offline", sum(d.presence == "offline" for d in devices)),
        ("unwell", "Degraded", sum(d.health in {"degraded", "failing"} for d in devices)),
        ("updating", "Updating", sum(main_slot(d).phase not in {"", "idle"} for d in devices)),
    )
    return "".join(
        f'<button type="button" class="chip" data-filter="{key}" '
        f"onclick=\"edgeml.grid.show('{key}')\">{name} <b>{number}</b></button>"
        for key, name, number in counts
    )


def build(board: Board, seen: Snapshot) -> None:
    """Add the search, the filters and the table."""
    search = (
        '<input type="search" class="search" placeholder="Search device, version, tag …" '
        'aria-label="Search devices" oninput="edgeml.grid.search(this.value)">'
    )
    board.fixed(heading("Devices"))
    with board.row("filters"):
        board.fixed(search, "")
        board.panel(filters, "chips")
    board.panel(_none)
    with board.body:
        table = Table(seen)
    board.follow(table.follow)


def _none(seen: Snapshot) -> str:
    if seen.devices:
        return ""
    return look.card("", look.empty(
        "No device yet. Make one known, and take the file to it:",
        "edgeml fleet enrol cam-1 -o cam-1.json\n"
        "edgeml-agent enrol cam-1.json --state /var/lib/edgeml",
    ))  # fmt: skip
