"""Routes of the API: candidates that are measured on devices of the fleet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from edgeml.errors import UsageError
from edgeml.fleet.api_upload import received
from edgeml.fleet.auth import User
from edgeml.fleet.measurement import Measurement, MeasureRequest
from edgeml.fleet.openapi import reply, shape
from edgeml.fleet.services import Services

Who = Callable[[Request], Awaitable[User]]


def measuring_routes(app: FastAPI, services: Services, viewer: Who, admin: Who) -> None:
    """Add the routes.

    Args:
        app: The application.
        services: The fleet.
        viewer: Who may look.
        admin: Who may let devices do something.
    """
    seen: dict[str, Any] = {"dependencies": [Depends(viewer)], "tags": ["measuring"]}
    may_change: User = Depends(admin)

    @app.get("/api/v1/measurements", **seen, **shape(Measurement, many=True))
    def measurements(limit: int = 100) -> Response:
        """Measurements on devices, newest first."""
        return reply(services.measurements(max(1, min(limit, 1000))))

    @app.get("/api/v1/measurements/{measurement}", **seen, **shape(Measurement))
    def measurement(measurement: str) -> Response:
        """One measurement with what its devices said."""
        return reply(services.measurement(measurement))

    @app.post("/api/v1/measurements", tags=["measuring"], **shape(Measurement))
    async def measure(request: Request, user: User = may_change) -> Response:
        """Measure the variants of a bundle (one tar) on devices; the query says which and how."""
        try:
            asked = msgspec.convert(dict(request.query_params), MeasureRequest, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"the query is no MeasureRequest: {error}") from error
        made = await received(request, services, lambda p: services.measure(p, asked, user.name))
        return reply(made)

    @app.post("/api/v1/measurements/{measurement}/cancel", tags=["measuring"], **shape(Measurement))
    async def cancel(measurement: str, user: User = may_change) -> Response:
        """End a measurement; what a device has already said stays."""
        return reply(await run_in_threadpool(services.cancel_measurement, measurement, user.name))
