"""The server's HTTP: routes of the Open Inference Protocol, health, metrics, the page.

Every error is JSON, ``{"error": "one line"}``, with the status that fits: 4xx for what
the client can mend, 429 and 503 with Retry-After, 504 for a deadline that passed.
"""

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import protocol, triton
from .access import Token, error_of
from .answers import Answer, Draining, Full, Late, Refused
from .behind import Reads, Takes
from .bodies import Gone, Held, Lingering, Unread, read_body
from .live import PAGE, Live
from .metrics import Metrics
from .policy import PolicyError
from .rows import InvalidRequest
from .tensors import Unreadable, metadata

VERSION = "1"
"""Of the model; new weights do not change it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class App:
    """A server's routes.

    Attributes:
      engine, executor, metrics, live: what it serves with.
      reload: reads the checkpoint again and swaps; None where there is none.
      name: of the model.
      token: that requests have to bring, or None.
      body_bytes: the largest body.
      held_bytes: of all requests that are being read or wait.
    """

    engine: Takes
    executor: Reads
    metrics: Metrics
    live: Live
    reload: Callable[[], None] | None = None
    name: str = "default"
    token: str | None = None
    body_bytes: int = 32 << 20
    held_bytes: int = 512 << 20
    _held: Held = dataclasses.field(default_factory=Held, init=False, repr=False)
    _loading: asyncio.Lock = dataclasses.field(
        default_factory=asyncio.Lock, init=False, repr=False
    )

    def asgi(self) -> ASGIApp:
        """The ASGI application."""
        model = "/v2/models/{name}"
        routes = [Route("/", self._page), Route("/live.json", self._live)]
        routes += [Route("/metrics", self._metrics), Route("/v2", self._server)]
        routes += [Route(f"/v2/health/{what}", self._health) for what in _HEALTH]
        # Before the routes of a model, of which none can be asked for as "stats".
        routes.append(Route("/v2/models/stats", self._stats))
        for prefix in (model, model + "/versions/{version}"):
            routes += [
                Route(prefix, self._model),
                Route(prefix + "/config", self._config),
                Route(prefix + "/stats", self._stats),
                Route(prefix + "/ready", self._model_ready),
                Route(prefix + "/infer", self._infer, methods=["POST"]),
            ]
        repository = "/v2/repository"
        routes += [
            Route(repository + "/index", self._index, methods=["POST"]),
            Route(repository + "/models/{name}/load", self._load, methods=["POST"]),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _told, Exception: _failed},
        )
        # It would be to http, and to whatever host the request names.
        app.router.redirect_slashes = False
        return app if self.token is None else Token(app, self.token)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        del app
        noting = asyncio.create_task(self._note())
        try:
            yield
        finally:
            noting.cancel()

    async def _note(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.live.note(loop.time())
            await asyncio.sleep(1)

    # -- inference

    async def _infer(self, request: Request) -> Response:
        arrived = self.engine.clock()
        self._check_model(request)
        if self.engine.draining:
            self.metrics.refused("draining")
            return error_of(503, "the server stops.", {"Retry-After": "1"})
        taken = False
        with self._held.room(self.held_bytes) as room:
            try:
                body = await read_body(request, self.body_bytes, room)
                header = request.headers.get("inference-header-content-length")
                of = self.executor
                asked = protocol.read(body, header, of.inputs, of.outputs)
                future = self.engine.submit(
                    of.check(asked.inputs),
                    arrived=arrived,
                    timeout_s=asked.timeout_s,
                    **asked.wishes,
                )
                taken = True
                answer = await _answer(future, request)
            except HTTPException as error:
                full = error.status_code == 429
                self.metrics.refused("full" if full else "invalid")
                raise
            except (Unreadable, InvalidRequest, PolicyError) as error:
                self.metrics.refused("invalid")
                return error_of(400, str(error))
            except (Full, Draining) as error:
                full = isinstance(error, Full)
                self.metrics.refused("full" if full else "draining")
                code = 429 if full else 503
                return error_of(code, str(error), {"Retry-After": "1"})
            except Refused as error:
                return error_of(504 if isinstance(error, Late) else 500, str(error))
            except Gone:
                if not taken:
                    self.metrics.refused("gone")
                return Response(status_code=499)  # nobody reads it
        parameters = {"rate": answer.rate}
        content, size = protocol.write(
            asked, answer.outputs, parameters, model=self.name, version=VERSION
        )
        if size is None:
            return Response(content, media_type="application/json")
        header = {"Inference-Header-Content-Length": str(size)}
        return Response(content, headers=header, media_type="application/octet-stream")

    # -- about the server and its model

    def _check_model(self, request: Request) -> None:
        name = request.path_params["name"]
        if name != self.name:
            raise HTTPException(404, f"no model {name!r:.80}; there is {self.name!r}.")
        version = request.path_params.get("version", VERSION)
        if version != VERSION:
            raise HTTPException(404, f"no version {version!r:.80}; there is '1'.")

    async def _server(self, request: Request) -> Response:
        del request
        return JSONResponse(
            {
                "name": "mslice_jax",
                "version": importlib.metadata.version("mslice_jax"),
                "extensions": [
                    "binary_tensor_data",
                    "model_repository",
                    "schedule_policy",
                    *triton.EXTENSIONS,
                ],
            }
        )

    async def _health(self, request: Request) -> Response:
        live = request.url.path.endswith("live")
        return Response(status_code=200 if live or self.engine.running else 503)

    async def _model(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse(
            {
                "name": self.name,
                "versions": [VERSION],
                "platform": "mslice_jax",
                "inputs": [metadata(x) for x in self.executor.inputs],
                "outputs": [metadata(x) for x in self.executor.outputs],
                "parameters": {
                    "rates": list(self.executor.rates),
                    "slo_ms": 1e3 * self.engine.slo_s,
                    "max_rows": self.executor.batch_sizes[-1],
                },
            }
        )

    async def _config(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse(triton.config(self.executor, self.name))

    async def _stats(self, request: Request) -> Response:
        if "name" in request.path_params:
            self._check_model(request)
        return JSONResponse(triton.statistics(self.metrics, self.name, VERSION))

    async def _model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return Response(status_code=200 if self.engine.running else 503)

    async def _index(self, request: Request) -> Response:
        asked = await _small_object(request)
        running = self.engine.running
        model = {
            "name": self.name,
            "version": VERSION,
            "state": "READY" if running else "UNAVAILABLE",
            "reason": "" if running else "the server stops",
        }
        return JSONResponse([model] if running or not asked.get("ready") else [])

    async def _load(self, request: Request) -> Response:
        self._check_model(request)
        if (await _small_object(request)).get("parameters"):
            raise HTTPException(400, "load takes no parameters here.")
        if self.reload is None:
            raise HTTPException(400, "there is no checkpoint that is read again here.")
        if self._loading.locked():  # each would read all weights
            text = "new weights are being read; ask again when they are there."
            raise HTTPException(429, text, {"Retry-After": "1"})
        try:
            async with self._loading:
                await run_in_threadpool(self.reload)
        except (ValueError, TypeError, OSError) as error:
            text = " ".join(str(error).split())
            raise HTTPException(400, f"the old weights stay: {text}") from error
        return Response()

    async def _metrics(self, request: Request) -> Response:
        del request
        text = generate_latest(self.metrics.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _live(self, request: Request) -> Response:
        del request
        return JSONResponse(self.live.told())

    async def _page(self, request: Request) -> Response:
        del request
        return Response(PAGE(), media_type="text/html")


_HEALTH = ("live", "ready")


async def _answer(future: Any, request: Request) -> Answer:
    """Waits for the answer, as long as the client does."""
    waiting = asyncio.wrap_future(future)
    gone = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise Gone
        return waiting.result()
    finally:
        gone.cancel()
        waiting.cancel()  # leaves the queue, if it is still there


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _small_object(request: Request) -> dict[str, Any]:
    body = await read_body(request, 1 << 16)
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "expected a JSON object, or no body.")
    return found


async def _told(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if isinstance(error, Unread):
        return Lingering({"error": error.detail}, error.status_code, headers)
    return error_of(error.status_code, error.detail, headers)


async def _failed(request: Request, error: Exception) -> Response:
    del request
    return error_of(500, f"the server failed: {type(error).__name__}.")
