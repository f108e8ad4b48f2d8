"""The endpoints beside completions: which model, how it is, what it has done."""

import time

from tokprune.metrics import exposition, metrics_registry
from tokprune.serving.asgi import Receive, Scope, Send, send_bytes, send_error, send_json
from tokprune.serving.refusals import HttpRefused
from tokprune.serving.state import Serving


class Models:
    """`GET /v1/models` and `GET /v1/models/NAME`."""

    def __init__(self, serving: Serving) -> None:
        self._model = {
            "id": serving.rules.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "tokprune",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """List the one model, or show it."""
        name = scope["path_params"].get("name")
        if name is None:
            await send_json(send, 200, {"object": "list", "data": [self._model]})
        elif name == self._model["id"]:
            await send_json(send, 200, self._model)
        else:
            message = f"There is no model {name!r:.100} here, only {self._model['id']!r}"
            await send_error(send, HttpRefused(404, "model_not_found", message))


class HealthReport:
    """`GET /health`: 200 while it can be asked, 503 once it is closed. Never waits."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell."""
        health = self._serving.vlm.health()
        state = "closed" if self._serving.door.closed else health.state
        body = {
            "status": state,
            "model": self._serving.rules.model,
            "backend": health.backend,
            "waiting": health.waiting,
        }
        await send_json(send, 503 if state == "closed" else 200, body)


class Metrics:
    """`GET /metrics`, in the text format of Prometheus (extra `metrics`)."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell, or answer 501 where prometheus-client is not installed."""
        try:
            data, media_type = exposition(metrics_registry(self._serving.stats))
        except Exception as error:
            await send_error(send, error)
        else:
            await send_bytes(send, 200, data, media_type)
