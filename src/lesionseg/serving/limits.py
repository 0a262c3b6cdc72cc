"""How much the server accepts at once: anything above is refused before it is read.

This bounds memory: a request's bytes are counted before the first one is received, and those of an
answer until its client has fetched it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PIECE = 65_536  # bytes of an answer that are sent at a time


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts.

    Attributes:
        max_requests: Requests at a time, being received, waiting, computed or answered.
        max_body: Bytes of a request.
        max_bytes: Bytes of all requests and answers held at a time.
        max_pixels: Pixels of an image, height times width.
        num_workers: Images that are decoded or encoded at a time; the network computes one.
        body_seconds: Time for a client to send its request.
        seconds: Time to make the answer, and again for the client to fetch it.
    """

    max_requests: int = 100
    max_body: int = 20_000_000
    max_bytes: int = 60_000_000
    max_pixels: int = 25_000_000
    num_workers: int = 2
    body_seconds: float = 20.0
    seconds: float = 120.0


class Admission:
    """ASGI middleware: a POST gets a place, or 429 at once. All requests see how many have one."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._num_requests = 0
        self._num_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if there is room for it."""
        scope["num_requests"] = self._num_requests
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        num_bytes = _declared_bytes(scope, unknown=self._limits.max_body)
        if num_bytes > self._limits.max_body:
            await _refuse(413, _too_long(self._limits))(scope, receive, send)
            return
        if self._num_requests == self._limits.max_requests or not self._has_room(num_bytes):
            busy = f"{self._num_requests} requests wait already. Try again in a second"
            await _refuse(429, busy)(scope, receive, send)
            return
        self._num_requests += 1
        try:
            with self._counted(num_bytes):
                answer = await self._ask(scope, receive)
            await self._hand_over(answer, scope, receive, send)
        finally:
            self._num_requests -= 1

    def _has_room(self, num_bytes: int) -> bool:
        return self._num_bytes + num_bytes <= self._limits.max_bytes

    @contextmanager
    def _counted(self, num_bytes: int) -> Iterator[None]:
        self._num_bytes += num_bytes
        try:
            yield
        finally:
            self._num_bytes -= num_bytes

    async def _ask(self, scope: Scope, receive: Receive) -> "_Answer | None":
        """The application's answer, None if it takes too long."""
        answer = _Answer()
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._app(scope, receive, answer.keep)
        except TimeoutError:
            return None
        return answer

    async def _hand_over(
        self, answer: "_Answer | None", scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send an answer as fast as the client reads, within the time limit."""
        if answer is None or not self._has_room(len(answer.body)):
            late = "it took too long. Try again later"
            reason = late if answer is None else "other answers are not fetched. Try again later"
            await _refuse(429, reason)(scope, receive, send)
            return
        with self._counted(len(answer.body)), suppress(TimeoutError):
            async with asyncio.timeout(self._limits.seconds):
                await answer.send(send)


class _Answer:
    """An application's answer, kept until it is sent."""

    def __init__(self) -> None:
        self._start: Message = {}
        self.body = b""

    async def keep(self, message: Message) -> None:
        """Store what the application sends."""
        if message["type"] == "http.response.start":
            self._start = message
        else:
            self.body += message.get("body", b"")

    async def send(self, send: Send) -> None:
        """Send it in pieces: between them the server waits until the client has read."""
        await send(self._start)
        for start in range(0, max(1, len(self.body)), PIECE):
            end = start + PIECE
            more = end < len(self.body)
            piece = self.body[start:end]
            await send({"type": "http.response.body", "body": piece, "more_body": more})


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body of a request.

    Raises:
        HTTPException: 413 for one that is too long, 408 for one that arrives too slowly.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body:
                    raise HTTPException(413, _too_long(limits))
    except TimeoutError:
        raise HTTPException(
            408, f"the request did not come within {limits.body_seconds:g} seconds"
        ) from None
    return bytes(body)


def _declared_bytes(scope: Scope, *, unknown: int) -> int:
    """The length of the body as declared by a request."""
    found = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(found[0]) if found else unknown  # the server has checked that it is a number


def _refuse(status: int, reason: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse({"detail": reason}, status, headers)


def _too_long(limits: Limits) -> str:
    return f"a request may have {limits.max_body} bytes. Send a smaller image"
