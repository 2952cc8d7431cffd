"""From what a user names to a tracker."""

from __future__ import annotations

from edgeml.errors import UsageError
from edgeml.plugins import load, table
from edgeml.tracking.base import Tracker


def open_tracker(place: str) -> Tracker:
    """Return the tracker that a user named.

    Args:
        place: A folder; the address of an MLflow server (``http://`` or ``https://``);
            ``mlflow`` for the server that ``MLFLOW_TRACKING_URI`` names; or ``NAME:ADDRESS`` with
            the name of a plug-in.

    Raises:
        UsageError: It is empty, or no place of its kind.
        UnreachableError: Nobody answers there.
    """
    if not place.strip():
        raise UsageError(
            "the place to track to is empty", "name a folder, or the address of an MLflow server"
        )
    name, colon, address = place.partition(":")
    if name in ("http", "https"):
        name, address = "mlflow", place
    elif name not in table("trackers") or not (colon or name == "mlflow"):
        if "://" in place:
            raise UsageError(
                f"cannot track to '{place}', expected a folder, http://HOST:PORT or https://HOST",
                "an MLflow store without a server is not written to: start 'mlflow server' on it, "
                "and name its address",
            )
        name, address = "files", place
    tracker: Tracker = load("trackers", name).open(address)
    return tracker
