"""Actions: the buttons of a rollout, each behind a question."""

from __future__ import annotations

import asyncio

from nicegui import ui

from edgeml.errors import EdgemlError
from edgeml.fleet.dashboard.frame import Board
from edgeml.fleet.views import RolloutDetail

#: Action -> (word on the button, what it does).
_WORDS = {
    "pause": ("Pause", "No further wave is released. Devices that are at it finish."),
    "resume": ("Resume", "The rollout goes on where it was paused."),
    "abort": (
        "Abort",
        "What is committed stays; devices that have not finished stay on their old version.",
    ),
    "rollback": (
        "Roll back",
        "Every touched device goes back to its own last verified version, and this version is "
        "quarantined: its digest does not run again unless people release it.",
    ),
}


class Actions:
    """The buttons; which of them show follows the rollout's state."""

    def __init__(self, board: Board, rollout: str) -> None:
        """Draw them, all hidden."""
        self._board, self._rollout = board, rollout
        with board.body, ui.element("div").classes("actions"):
            self._buttons = {
                action: ui.button(word, color=None, on_click=lambda a=action: self._ask(a))
                .props("unelevated no-caps no-wrap")
                .classes(f"action {action}")
                for action, (word, _) in _WORDS.items()
            }
        for button in self._buttons.values():
            button.set_visibility(False)

    def follow(self, found: RolloutDetail) -> None:
        """Show what may be asked for now."""
        able = self._board.viewer.user.may_change
        for action, button in self._buttons.items():
            button.set_visibility(able and action in found.row.may)

    def _ask(self, action: str) -> None:
        word, what = _WORDS[action]
        with ui.dialog() as dialog, ui.element("div").classes("card question"):
            ui.label(f"{word}?").classes("title")
            ui.label(what)
            reason = ui.input("Reason (kept with the decision)").props("outlined dense autofocus")
            with ui.element("div").classes("line"):

                async def go() -> None:
                    dialog.close()
                    await self._do(action, reason.value.strip())

                ui.button("Cancel", color=None, on_click=dialog.close).props("flat no-caps")
                ui.button(word, color=None, on_click=go).props("unelevated no-caps").classes(
                    f"action confirm {action}"
                )
        dialog.on("hide", dialog.delete)
        dialog.open()

    async def _do(self, action: str, reason: str) -> None:
        user = await self._board.user()
        if user is None or not user.may_change:
            ui.notify("log in as an admin to change the fleet", type="negative")
            return
        told = f"{reason} ({user.name})" if reason else f"{action} by {user.name}"
        services = self._board.live.services
        try:
            await asyncio.to_thread(services.control, self._rollout, action, told)
        except EdgemlError as error:
            ui.notify(f"{error.message}. {error.hint}", type="negative")
            return
        await self._board.refresh()
