"""Requests and answers, the log of them, and the disturbances that a test switches on."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .accounts import TYPES, Token
from .repository import HubError

CHUNK_BYTES = 65536


@dataclass
class Request:
    """One line of the log.

    Attributes:
        host: "hub", or "cdn" for the store of large files, which is another server.
        path: with the query, quoted as it was sent.
        headers: by lower-case name.
        status: of the answer; None as long as there is none.
        sent: bytes of the answer's body so far, received: bytes of the request's body.
    """

    method: str
    host: str
    path: str
    headers: dict[str, str] = field(repr=False)
    status: int | None = None
    sent: int = 0
    received: int = 0

    def matches(self, path_regex: str, method: str | None) -> bool:
        """Whether the expression is found in "hub/path?query" or "cdn/path?query"."""
        if method not in (None, self.method):
            return False
        return re.search(path_regex, f"{self.host}{self.path}") is not None


@dataclass
class Call:
    """What an endpoint is given: a request, the parts of its path, and who sent it."""

    request: Request
    body: bytes
    token: Token | None
    parts: dict[str, str]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.request.path).query, keep_blank_values=True)

    def flag(self, name: str) -> bool:
        """Whether the query says yes, as the client writes it."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body or b"{}"))

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode(), keep_blank_values=True)

    @property
    def repo(self) -> tuple[str, str]:
        """(type, id) of the repository in the path."""
        return TYPES[self.parts.get("kind", "models")], self.parts["id"]


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    body = json.dumps(data).encode()
    return Answer(status, body, {"Content-Type": "application/json", **(headers or {})})


def error_answer(error: HubError) -> Answer:
    headers = {"X-Error-Message": error.message, **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return json_answer(error.body, error.status, headers)


class NotModelled(Exception):
    """A request that no endpoint is for."""


Endpoint = Callable[[Any, Call], Answer]
Route = tuple[str, str, Endpoint]


def find_route(
    routes: tuple[Route, ...], method: str, path: str
) -> tuple[Endpoint, dict[str, str]]:
    """The endpoint of a request, and the parts of its path (unquoted).

    Raises:
        NotModelled: there is none.
    """
    for methods, pattern, endpoint in routes:
        match = re.fullmatch(pattern, urlsplit(path).path)
        if match and method in methods.split("|"):
            return endpoint, {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
    raise NotModelled(f"{method} {path} is not modelled by the Hub of the tests")


class Log:
    """All requests, in the order in which they came."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._lock = threading.Condition()

    def add(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)
            self._lock.notify_all()

    def wait_for(self, path_regex: str, method: str | None, timeout_s: float) -> Request:
        """The first such request, once it has come.

        Raises:
            TimeoutError: none came.
        """

        def come() -> Request | None:
            return next((r for r in self._requests if r.matches(path_regex, method)), None)

        with self._lock:
            found = self._lock.wait_for(come, timeout_s)
        if found is None:
            raise TimeoutError(f"no request for {path_regex} within {timeout_s:g} s")
        return found

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()

    def find(self, method: str | None = None, path_regex: str = "") -> list[Request]:
        with self._lock:
            return [r for r in self._requests if r.matches(path_regex, method)]


@dataclass
class Fault:
    """A disturbance of the requests whose path matches; switched off by `release`.

    Attributes:
        times: how many requests it meets, None for all.
        answer: given instead of the real one; what is asked is still done if `carried_out`.
        hangs: nothing is answered until the release, then the real answer.
        cut_after: the connection is closed after as many bytes of the answer's body.
        drips: seconds between two bytes of the answer, until the release.
        action: called before the request is looked at.
    """

    path_regex: str
    method: str | None = None
    times: int | None = None
    answer: Answer | None = None
    carried_out: bool = False
    hangs: bool = False
    cut_after: int | None = None
    drips: float | None = None
    action: Callable[[], object] | None = None
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()


class Interruption:
    """Breaks the upload of large files off, until it is released."""

    def __init__(self, after_bytes: int | None, after_objects: int | None) -> None:
        if (after_bytes is None) == (after_objects is None):
            raise ValueError("an upload is interrupted after bytes or after objects")
        self._bytes, self._objects = after_bytes, after_objects
        self._received = 0
        self._begun: set[str] = set()
        self._lock = threading.Lock()
        self.released = threading.Event()

    def release(self) -> None:
        self.released.set()

    def refuses(self, object_: str) -> bool:
        """Whether an object comes after those that are accepted."""
        if self._objects is None or self.released.is_set():
            return False
        with self._lock:
            if object_ not in self._begun and len(self._begun) >= self._objects:
                return True
            self._begun.add(object_)
            return False

    def breaks(self, received: int) -> bool:
        """Whether the connection breaks after `received` more bytes."""
        if self._bytes is None or self.released.is_set():
            return False
        with self._lock:
            self._received += received
            return self._received >= self._bytes


class Faults:
    """The disturbances that are switched on."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.interruption: Interruption | None = None

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def meet(self, request: Request) -> list[Fault]:
        """The disturbances of a request; each is counted as met."""
        met = []
        with self._lock:
            for fault in self._faults:
                if fault.released.is_set() or not request.matches(fault.path_regex, fault.method):
                    continue
                if fault.times is not None:
                    if fault.times <= 0:
                        continue
                    fault.times -= 1
                met.append(fault)
        return met

    def release(self) -> None:
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.release()
        if self.interruption is not None:
            self.interruption.release()
