"""Who may ask: a token, where one is required."""

import hmac

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

_FREE = {"/", "/v2/health/live", "/v2/health/ready"}
"""The page, which is empty without its numbers; and what balancers ask."""


def error_of(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An error as the protocol has it."""
    return JSONResponse({"error": text}, status_code=status, headers=headers)


class Token:
    """Asks for ``Authorization: Bearer TOKEN``, but for health and the empty page."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application around another."""
        if scope["type"] == "http" and scope["path"] not in _FREE:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                header = {"WWW-Authenticate": "Bearer"}
                refuse = error_of(401, "expected Authorization: Bearer TOKEN.", header)
                await refuse(scope, receive, send)
                return
        await self._app(scope, receive, send)
