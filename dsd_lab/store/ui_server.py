"""MLflow's server behind a token, as a process that `dsd-lab ui` starts with a socket and an environment.

Without accounts, MLflow serves every user of the machine, and an experiment with a chosen artifact location can read
any file of the server's user. Requests therefore need a token: in the URL at first, which sets a cookie, or as
`Authorization: Bearer`, which MLflow's clients send for MLFLOW_TRACKING_TOKEN. The URL with the token opens the
trials of the latest sweep.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

COOKIE, TOKEN = "dsd-lab-ui", "token"
_REFUSED = "This MLflow server requires a token: open the address that `dsd-lab ui` printed.\n"


_START = """<!doctype html><meta charset="utf-8"><title>dsd-lab</title><script>
for (const [key, value] of Object.entries(%s)) if (localStorage.getItem(key) === null) localStorage.setItem(key, value);
location.replace(%s);
</script><noscript><a href="/">MLflow</a></noscript>"""
_SETTINGS = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}
"""Initial settings for MLflow's pages in a browser that has none: menus for training instead of chatbots, and the
assistant, which needs a language model, closed."""


class TokenGate:
    """ASGI app that forwards requests with the token and answers 401 to others.

    Args:
        app: the wrapped app.
        token: required token.
        newest: returns the page to open, as URL fragment after `#`, called per request because sweeps continue while
            pages are served. None opens MLflow's first page.
    """

    def __init__(self, app: Any, token: str, newest: Callable[[], str | None] = lambda: None) -> None:
        self._app, self._token, self._newest = app, token.encode(), newest

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(request.cookies.get(COOKIE, "")) or self._is_token(bearer):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] == "GET" and self._is_token(request.query_params.get(TOKEN, "")):
            answer = await self._redirect(request)
            # Lax: links in reports and mails work, forms of other sites do not send it.
            answer.set_cookie(COOKIE, self._token.decode(), httponly=True, samesite="lax")
            answer.headers["Cache-Control"] = "no-store"
            await answer(scope, receive, send)
        else:
            await PlainTextResponse(_REFUSED, 401)(scope, receive, send)

    async def _redirect(self, request: HTTPConnection) -> Response:
        """Redirect to a URL without the token, which then is in no history and no referrer."""
        page = request.url.remove_query_params(TOKEN)
        if page.path != "/":
            return RedirectResponse("/" + page.path.lstrip("/") + (f"?{page.query}" if page.query else ""), 303)
        newest = await run_in_threadpool(self._newest)
        to = "/" if newest is None else f"/#{newest}"
        # It contains a sweep's name, in which `<` could end the script.
        quoted = (json.dumps(value).replace("<", "\\u003c") for value in (_SETTINGS, to))
        return HTMLResponse(_START % tuple(quoted))

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)


def serve(listening: socket.socket, uri: str, token: str, home_id: str) -> None:
    """Serve MLflow's pages and REST API until the process is terminated.

    Args:
        listening: socket bound to an address of this machine.
        uri: of the store.
        token: required token.
        home_id: of the home folder whose latest sweep is opened; empty: the latest of the store.
    """
    import uvicorn
    from mlflow import MlflowClient, server
    from mlflow.exceptions import MlflowException

    os.environ[server.BACKEND_STORE_URI_ENV_VAR] = uri  # as `mlflow server` does
    os.environ[server.REGISTRY_STORE_URI_ENV_VAR] = uri
    from mlflow.server.fastapi_app import app

    from dsd_lab.store.views import newest_view

    client = MlflowClient(tracking_uri=uri)

    def newest() -> str | None:
        with contextlib.suppress(MlflowException):  # the pages themselves report errors of the store
            return newest_view(client, home_id)
        return None

    gate = TokenGate(app, token, newest)
    # No access log: the first request has the token in its URL.
    config = uvicorn.Config(gate, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve(
        socket.socket(fileno=int(sys.argv[1])),
        os.environ["MLFLOW_BACKEND_STORE_URI"],
        os.environ.pop("DSD_LAB_UI_TOKEN"),
        sys.argv[2],
    )
