"""MLflow's server behind a token, in a process of its own: `dsd-lab ui` starts it with a socket and an environment.

Without accounts MLflow answers every user of the machine, and an experiment with an artifact location of one's own
reads any file of whoever runs the server. A request needs the token: in the address at first, which sets a cookie,
or as `Authorization: Bearer`, which MLflow's clients send for MLFLOW_TRACKING_TOKEN.
"""

from __future__ import annotations

import hmac
import os
import socket
import sys
from typing import Any

from starlette.datastructures import URL
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse

COOKIE, TOKEN = "dsd-lab-ui", "token"
_REFUSED = "This MLflow asks for a token: open the address that `dsd-lab ui` printed.\n"


class TokenGate:
    """An ASGI app that passes on what brings the token, and refuses everything else with 401.

    Args:
        app: what is behind it.
        token: which every request needs.
    """

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        asked = HTTPConnection(scope)
        bearer = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(asked.cookies.get(COOKIE, "")) or self._is_token(bearer):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] == "GET" and self._is_token(asked.query_params.get(TOKEN, "")):
            await self._welcome(asked.url)(scope, receive, send)
        else:
            await PlainTextResponse(_REFUSED, 401)(scope, receive, send)

    def _welcome(self, url: URL) -> RedirectResponse:
        """The same page without the token, which then is in no history and no referrer."""
        page = url.remove_query_params(TOKEN)
        answer = RedirectResponse("/" + page.path.lstrip("/") + (f"?{page.query}" if page.query else ""), 303)
        # Lax: a link in a report or a mail leads here, and other sites' forms do not bring it.
        answer.set_cookie(COOKIE, self._token.decode(), httponly=True, samesite="lax")
        return answer

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)


def serve(listening: socket.socket, uri: str, token: str) -> None:
    """Serve MLflow's pages and its REST interface until the process is told to end.

    Args:
        listening: socket that is bound to an address of this machine.
        uri: of the store.
        token: which every request needs.
    """
    import uvicorn
    from mlflow import server

    os.environ[server.BACKEND_STORE_URI_ENV_VAR] = uri  # what `mlflow server` hands to its app
    os.environ[server.REGISTRY_STORE_URI_ENV_VAR] = uri
    from mlflow.server.fastapi_app import app

    # No list of requests: the first one has the token in its address.
    config = uvicorn.Config(TokenGate(app, token), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve(
        socket.socket(fileno=int(sys.argv[1])),
        os.environ["MLFLOW_BACKEND_STORE_URI"],
        os.environ.pop("DSD_LAB_UI_TOKEN"),
    )
