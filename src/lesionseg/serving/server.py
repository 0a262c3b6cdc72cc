"""The server's process: a socket, and uvicorn on it until it is stopped."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from lesionseg.errors import LesionsegError

BACKLOG = 128  # connections that the system queues for us
KEEP_ALIVE = 10  # seconds of silence after an answer
LAST_SECONDS = 30  # for the requests that are in progress when it is stopped


def serve(app: FastAPI, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer until Ctrl-C or SIGTERM, and then finish the requests in progress.

    Args:
        app: The application.
        host: The address to listen on.
        port: The port; 0 takes any free one.
        ready: Called with the URL once connections are accepted.

    Raises:
        LesionsegError: The address cannot be used.
    """
    server = make_server(app)
    with listen(host, port) as listener:
        ready(address_of(listener))
        with suppress(KeyboardInterrupt):  # which uvicorn raises again when it has finished
            server.run(sockets=[listener])


def make_server(app: FastAPI) -> uvicorn.Server:
    """uvicorn, silent except for warnings and errors."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        LesionsegError: The address is taken, or not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        number = error.errno or 0
        # The system's own text, without what Python adds.
        reason = os.strerror(number) if number > 0 else error.strerror
        raise LesionsegError(
            f"cannot listen on {host}, port {port} ({reason})",
            "Choose others with --host and --port",
        ) from None


def address_of(listener: socket.socket) -> str:
    """The URL served at a socket, with a slash at its end."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
