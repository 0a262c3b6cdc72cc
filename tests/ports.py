"""Ports for servers that tests start."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """A port that no client is given as its own before the server starts: below 32768."""
    while True:
        port = random.SystemRandom().randrange(20000, 32768)
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
