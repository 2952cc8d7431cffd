"""Which topics fit a pattern (MQTT 5, section 4.7)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from edgeml.link.base import ConnectionHandler, Handler, LinkMessage

logger = logging.getLogger(__name__)


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a topic fits a pattern with ``+`` (one level) and ``#`` (all that follow).

    A wildcard at the first level never fits a topic that begins with ``$``.
    """
    wanted, given = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(given) or level not in {"+", given[index]}:
            return False
    return len(wanted) == len(given)


def dispatch(subscriptions: Iterable[tuple[str, Handler]], message: LinkMessage) -> bool:
    """Hand a message to every handler whose pattern fits; tell whether there was one.

    A handler that raises is a bug of its owner: it is logged, and the link lives on.
    """
    asked = False
    for pattern, handler in subscriptions:
        if not matches(pattern, message.topic):
            continue
        asked = True
        try:
            handler(message)
        except Exception:  # boundary between the link's thread and foreign code
            logger.exception("handler of '%s' failed on '%s'", pattern, message.topic)
    return asked


def tell(handlers: Iterable[ConnectionHandler], connected: bool) -> None:
    """Tell every handler that the connection came or went; one that raises is logged."""
    for handler in handlers:
        try:
            handler(connected)
        except Exception:  # boundary between the link's thread and foreign code
            logger.exception("connection handler failed")
