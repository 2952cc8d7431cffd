"""The dashboard: pages over the services, on the same server as the API.

NiceGUI is imported only in this package, and only by ``mount``: importing the fleet stays cheap.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI

from edgeml.fleet.services import Services


def mount(app: FastAPI, services: Services, data: Path) -> None:
    """Put the pages on an application; once per process, because NiceGUI has one application.

    Args:
        app: The application with the API.
        services: The fleet.
        data: The server's folder. NiceGUI would keep its storage there; the pages use none, so
            that nothing is written and no secret for it is needed.
    """
    # Read when it is imported; the default is a folder in the current directory.
    os.environ["NICEGUI_STORAGE_PATH"] = str(data / "nicegui")
    from edgeml.fleet.dashboard.pages import add_pages

    add_pages(app, services)
