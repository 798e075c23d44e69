"""Bodies of HTTP requests, read within bounds of size, time and memory."""

import asyncio
import contextlib
import dataclasses
import zlib
from collections.abc import Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

_SECONDS = 30.0
"""A body that has not come by then never will."""
_LINGER_S = 10.0
"""How long the rest of a body is read that is refused."""


class Gone(Exception):
    """The client hung up."""


class Unread(HTTPException):
    """A request is refused while its body still comes."""


class Lingering(JSONResponse):
    """An answer while the client still sends; then its connection is closed.

    What is left of the body is read and thrown away in between. If the connection were
    closed at once, the system would reset it, and a client that sends first and reads
    then would never see the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        del scope
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        part = {"type": "http.response.body", "body": self.body, "more_body": True}
        await send(part)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


@dataclasses.dataclass
class Held:
    """How many bytes the bodies have that are being read, or whose requests wait."""

    bytes: int = 0

    @contextlib.contextmanager
    def room(self, limit: int) -> Iterator["Room"]:
        """Counts one body; its bytes are given back at the end of the block."""
        room = Room(self, limit)
        try:
            yield room
        finally:
            self.bytes -= room.bytes


@dataclasses.dataclass
class Room:
    """What one body takes of all that may be held."""

    held: Held
    limit: int
    bytes: int = 0

    def take(self, size: int) -> None:
        """Takes so many bytes more.

        Raises:
          HTTPException: 429, if all bodies together are too large.
        """
        if self.held.bytes + size > self.limit:
            raise HTTPException(
                429,
                f"bodies of {self.held.bytes} bytes wait, of at most {self.limit}.",
                {"Retry-After": "1"},
            )
        self.held.bytes += size
        self.bytes += size


async def read_body(
    request: Request, limit: int, room: Room | None = None
) -> bytes | bytearray:
    """The body of a request, unpacked.

    Args:
      request: its body was not read yet.
      limit: how many bytes it may have, also unpacked.
      room: counts them.

    Raises:
      HTTPException: 413 if it is too large, 408 if it does not come, 415 for an
        encoding that is not known, 400 for one that is broken, or two lengths. It is an
        `Unread` if there may be more of the body.
      Gone: if the client hung up.
    """
    told = request.headers.get("content-length", "")
    if told and "transfer-encoding" in request.headers:
        # A proxy in front may have taken the other one for the end of the body.
        raise Unread(
            400,
            "expected Content-Length or Transfer-Encoding, got both.",
            {"Connection": "close"},
        )
    if told.isdecimal() and int(told[:20]) > limit:
        raise _too_large(limit, more=True)
    try:
        async with asyncio.timeout(_SECONDS):
            body = await _all_of(request, limit, room)
    except TimeoutError:
        raise HTTPException(408, f"the body did not come in {_SECONDS:g} s.") from None
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise HTTPException(
            415, f"Content-Encoding {encoding!r:.60}: expected gzip, deflate or none."
        )
    return _unpacked(body, limit, room)


async def _all_of(request: Request, limit: int, room: Room | None) -> bytes | bytearray:
    found = b""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        if room is not None:
            room.take(len(part))
        if not found:
            found = part  # mostly it comes at once
        else:
            if isinstance(found, bytes):
                found = bytearray(found)
            found += part
        if len(found) > limit:
            raise _too_large(limit, more=bool(message.get("more_body")))
        if not message.get("more_body"):
            return found


def _unpacked(body: bytes | bytearray, limit: int, room: Room | None) -> bytes:
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its head
    try:
        found = unpack.decompress(body, limit + 1)
    except zlib.error as error:
        raise HTTPException(400, f"the body is not packed so: {error}.") from None
    if len(found) > limit:
        raise _too_large(limit)
    if not unpack.eof:
        raise HTTPException(400, "the packed body ends too early.")
    if unpack.unused_data:
        raise HTTPException(400, "there is more after the end of the packed body.")
    if room is not None:
        room.take(len(found))
    return found


def _too_large(limit: int, *, more: bool = False) -> HTTPException:
    text = f"the body has more than {limit} bytes."
    if more:
        return Unread(413, text, {"Connection": "close"})
    return HTTPException(413, text)
