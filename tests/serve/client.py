"""A client of HTTP that does no more than it is told."""

import http.client
import json as json_lib
from dataclasses import dataclass
from typing import Any


@dataclass
class Reply:
    status_code: int
    headers: Any
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json_lib.loads(self.content)


class Client:
    """One connection a request, to a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(self, method, path, *, json=None, content=b"", headers=None) -> Reply:
        body = content if json is None else json_lib.dumps(json).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path, **more) -> Reply:
        return self.request("GET", path, **more)

    def post(self, path, **more) -> Reply:
        return self.request("POST", path, **more)
