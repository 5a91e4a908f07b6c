"""A thread that listens on a port of 127.0.0.1 and hands requests to a Hub."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .traffic import CHUNK_BYTES, Answer, Fault, Interruption, Request

if TYPE_CHECKING:
    from .server import Hub

POLL_S = 0.02
END_S = 10.0
_NO_LINGER = struct.pack("ii", 1, 0)
_numbers = itertools.count(1)


class Broken(ConnectionError):
    """The connection is to be closed as if the network had failed."""


class Cut(ConnectionError):
    """The connection is to be closed after what was sent."""


class Listener(socketserver.ThreadingTCPServer):
    """One of the two servers of a Hub; `host` names it in the log."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: Hub, host: str) -> None:
        self.hub, self.host = hub, host
        self.refusing = False
        self._open: set[socket.socket] = set()
        self._handlers: list[threading.Thread] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(
            target=self.serve_forever, args=(POLL_S,), name=f"local-{host}", daemon=True
        )
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name=f"local-{self.host}-connection",
            daemon=True,
        )
        with self._lock:
            self._open.add(request)
            self._handlers = [t for t in self._handlers if t.is_alive()] + [thread]
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Record what no answer could tell of; a client that went away is no error."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            self.hub.errors.append(f"{self.host}: {error!r}")

    def refuse(self) -> None:
        """Answer nothing from now on, not even what is released."""
        self.refusing = True

    def close(self) -> None:
        self.shutdown()
        with self._lock:
            connections, threads = list(self._open), list(self._handlers)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in [self._thread, *threads]:
            thread.join(END_S)
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets the disturbances have their way, and writes the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except Cut:
            self.close_connection = True  # what was sent arrives, which a reset would prevent
        except Broken:
            self.close_connection = True
            # The client is told with a reset, as when a machine on the way gives up.
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                self.connection.shutdown(socket.SHUT_RD)
        except ConnectionError:
            self.close_connection = True

    def _serve(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.server.host, self.path, headers)
        hub.log.add(request)
        faults = hub.faults.meet(request)
        for fault in faults:
            if fault.action is not None:
                fault.action()
        body = self._body(request, hub.faults.interruption)
        for fault in faults:
            if fault.hangs:
                fault.released.wait()
        if self.server.refusing:
            raise Broken("the Hub was stopped")
        self._reply(request, self._answer(request, body, faults), faults)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, request: Request, body: bytes, faults: list[Fault]) -> Answer:
        hub = self.server.hub
        instead = next((fault for fault in faults if fault.answer is not None), None)
        if instead is None or instead.carried_out:
            interruption, object_ = hub.faults.interruption, _object_of(request)
            if object_ and interruption is not None and interruption.refuses(object_):
                return Answer(500, b"InternalError")
            try:
                answer = hub.answer(request, body)
            except Exception as error:  # shown to the test, which would else see a lost connection
                answer = hub.fault_in_server(request, error)
        return answer if instead is None else instead.answer or answer

    # The body of a request

    def _body(self, request: Request, interruption: Interruption | None) -> bytes:
        chunks = []
        watched = interruption is not None and _object_of(request) is not None
        for chunk in self._chunks():
            request.received += len(chunk)
            if watched and interruption is not None and interruption.breaks(len(chunk)):
                raise Broken("the upload is interrupted")
            chunks.append(chunk)
        return b"".join(chunks)

    def _chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield from self._exactly(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._exactly(int(self.headers.get("Content-Length") or 0))

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size > 0:
            chunk = self.rfile.read1(min(size, CHUNK_BYTES))
            if not chunk:
                raise Broken("the client went away")
            size -= len(chunk)
            yield chunk

    # The answer

    def _reply(self, request: Request, answer: Answer, faults: list[Fault]) -> None:
        dripping = next((fault for fault in faults if fault.drips is not None), None)
        plain = self.wfile
        if dripping is not None:
            self.wfile = Dripping(plain, dripping, self.server)  # type: ignore[assignment]
        try:
            request.status = answer.status
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("X-Request-Id", f"Root=1-local-{next(_numbers)}")
            self.end_headers()
            if self.command != "HEAD":
                cut = min((f.cut_after for f in faults if f.cut_after is not None), default=None)
                self._send(request, answer.body[:cut], 1 if dripping else CHUNK_BYTES)
                if cut is not None and cut < len(answer.body):
                    raise Cut("the answer is cut")
        finally:
            self.wfile = plain

    def _send(self, request: Request, body: bytes, step: int) -> None:
        whole = memoryview(body)
        for start in range(0, len(body), step):
            chunk = whole[start : start + step]
            # Counted first, so that a client that has a byte finds it counted.
            request.sent += len(chunk)
            self.wfile.write(chunk)

    def log_message(self, *args: object) -> None:
        """The log of the Hub is enough."""


class Dripping:
    """Writes a byte at a time with pauses, until its fault is released."""

    def __init__(self, plain: Any, fault: Fault, server: Listener) -> None:
        self._plain, self._fault, self._server = plain, fault, server

    def write(self, data: bytes) -> int:
        for start in range(len(data)):
            if self._fault.released.is_set():
                if self._server.refusing:
                    raise Broken("the Hub was stopped")
                self._plain.write(data[start:])
                break
            self._plain.write(data[start : start + 1])
            self._fault.released.wait(self._fault.drips)
        return len(data)

    def flush(self) -> None:
        self._plain.flush()


def _object_of(request: Request) -> str | None:
    """The object that is uploaded by a request, if one is."""
    match = re.search(r"/upload/([0-9a-f]{64})/", urlsplit(request.path).path)
    return match[1] if match and request.method == "PUT" else None
