"""All endpoints, put together with Starlette (extra `serve`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from tokprune.serving.asgi import App
from tokprune.serving.completions import Completions
from tokprune.serving.endpoints import HealthReport, Metrics, Models
from tokprune.serving.guards import PATHS, Guarded
from tokprune.serving.refusals import HttpRefused, refusal
from tokprune.serving.state import Serving

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


def application(
    serving: Serving, *, allow_hosts: Sequence[str] = (), allow_origins: Sequence[str] = ()
) -> App:
    """Return the server as an ASGI application.

    Args:
        serving: a VLM and its rules.
        allow_hosts: names that it is asked by; see `Guarded`.
        allow_origins: web pages of other servers that may ask (CORS); none if not given.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.routing import Route

    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(allow_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )
    completions, models, health, metrics = PATHS
    app = Starlette(
        routes=[
            Route(completions, Completions(serving), methods=["POST"]),
            Route(models, Models(serving), methods=["GET"]),
            Route(f"{models}/{{name:path}}", Models(serving), methods=["GET"]),
            Route(health, HealthReport(serving), methods=["GET"]),
            Route(metrics, Metrics(serving), methods=["GET"]),
        ],
        middleware=[cors] if allow_origins else [],
        exception_handlers={HTTPException: _unrouted},
    )
    app.router.redirect_slashes = False
    return Guarded(app, allow_hosts=allow_hosts, allow_origins=allow_origins)


async def _unrouted(request: "Request", error: Exception) -> "Response":
    """Answer a request that no endpoint takes."""
    from starlette.responses import Response

    status: int = getattr(error, "status_code", 500)
    if status == 405:
        message = f"{request.method[:20]} is not the method of this endpoint"
        refused = HttpRefused(405, "method_not_allowed", message)
    else:
        refused = HttpRefused(
            status, "not_found", f"There is nothing here, only {', '.join(PATHS)}"
        )
    body = msgspec.json.encode(refusal(refused).body)
    headers: dict[str, str] | None = getattr(error, "headers", None)
    return Response(body, status, headers, media_type="application/json")
