"""A store of runs that may be unreachable, slow or broken: this costs seconds and one log line.

Each call has a deadline. A call that misses it is left behind in a daemon thread, for which neither
the caller nor the end of the process waits.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from lesionseg.errors import TrackingError

CALL_SECONDS = 20.0  # limit of one call
_ALL_SECONDS, _SHARE = 60.0, 0.1  # limit of all calls, plus this share of the process's time
_RETRY_SECONDS = 600.0  # until a store that has failed is asked again
# MLflow's codes for problems with one run; all others concern the store.
_OF_ONE_RUN = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
# Patterns in MLflow's many errors, what they mean, and what to do before the final command.
_CAUSES = (
    (
        r"error code 401\b|UNAUTHENTICATED",
        "{store} does not know this user and password",
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, then",
    ),
    (
        r"Invalid Host header",
        "{store} does not accept this address (Invalid Host header)",
        "Who runs it adds it to MLFLOW_SERVER_ALLOWED_HOSTS (docs/team.md); then",
    ),
    (
        r"error code 403\b|PERMISSION_DENIED",
        "{store} does not permit this user to do that ({reason})",
        "Ask who runs it for the permission EDIT (docs/team.md), then",
    ),
    (
        r"error code 404\b|not in a valid JSON",
        "{store} is no MLflow server ({reason})",
        "Correct MLFLOW_TRACKING_URI, or unset it, then",
    ),
    (
        r"database is locked",
        "{store} is being written by another process for too long",
        "Find and end it (fuser shows which), then",
    ),
    (
        r"is malformed|not a database",
        "{store} is damaged ({reason})",
        "Move it away, then",
    ),
    (
        r"disk is full|No space left|Disk quota",
        "no room for {store} ({reason})",
        "Make room, then",
    ),
    (
        r"failed with (timeout )?exception",
        "{store} does not answer ({reason})",
        "When it is there again",
    ),
)
# The part of a urllib3 error that a user can understand.
_READABLE = (
    r"Connection refused|Name or service not known|nodename nor servname|No route to host|"
    r"Network is unreachable|Temporary failure in name resolution|timed out|"
    r"Connection reset by peer|Connection aborted|Remote end closed connection|"
    r"CERTIFICATE_VERIFY_FAILED[^(]*|too many \d+ error responses|WRONG_VERSION_NUMBER"
)
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Store:
    """What a process knows about one store of runs.

    Attributes:
        name: What messages call it.
        is_patient: Whether all calls together may take any time, and failures cause no warning.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_patient = False
        self._began = time.monotonic()
        self._spent = 0.0
        self._failure = TrackingError("")
        self._failed_at = -math.inf
        self._said: set[str] = set()

    def ask(self, function: Callable[[], _Result], *, extra_seconds: float = 0) -> _Result:
        """What `function` returns.

        Args:
            function: Called in another thread.
            extra_seconds: Time it may take on top of what every call has.

        Raises:
            TrackingError: It failed or was too slow, or a recent call did.
        """
        start = time.monotonic()
        if start - self._failed_at < _RETRY_SECONDS:
            raise TrackingError(self._failure.problem, self._failure.mend)
        seconds = CALL_SECONDS if self.is_patient else min(CALL_SECONDS, self._left())
        try:
            return within(seconds + extra_seconds, function)
        except Exception as error:
            failure = self._explain(error)
            if getattr(error, "error_code", None) not in _OF_ONE_RUN:
                self._failure, self._failed_at = failure, time.monotonic()
            raise TrackingError(failure.problem, failure.mend) from error
        finally:
            self._spent += max(0.0, time.monotonic() - start - extra_seconds)

    def warn(self, error: TrackingError) -> None:
        """Log a failure, once per process."""
        if self.is_patient or str(error) in self._said:
            return
        self._said.add(str(error))
        _log.warning("MLflow is not available, this run goes on without it: %s", error)

    def _left(self) -> float:
        """Seconds that calls may still take; always enough for a quick one."""
        return max(1.0, _ALL_SECONDS + _SHARE * (time.monotonic() - self._began) - self._spent)

    def _explain(self, error: Exception) -> TrackingError:
        """One line that says what is wrong and what to do."""
        if isinstance(error, TrackingError):
            return error
        if isinstance(error, TimeoutError):
            return TrackingError(f"{self.name} is too slow ({error})", "When it answers again")
        text = str(error)
        readable = re.search(_READABLE, text)
        lines = [line for line in text.splitlines() if not line.startswith("(raised as a result")]
        reason = readable[0] if readable else (lines or [type(error).__name__])[0][:200]
        for pattern, problem, mend in _CAUSES:
            if re.search(pattern, text):
                return TrackingError(problem.format(store=self.name, reason=reason), mend)
        return TrackingError(f"{self.name} cannot be used ({reason})", "When that is mended")


def within(seconds: float, function: Callable[[], _Result]) -> _Result:
    """What `function` returns or raises, in a thread of its own.

    Raises:
        TimeoutError: It has not ended by then; it goes on, and nobody waits for it.
    """
    future: Future[_Result] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  (raised again in the waiting thread)
            future.set_exception(error)

    thread = threading.Thread(target=work, name="mlflow", daemon=True)
    thread.start()
    thread.join(seconds)
    if not future.done():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return future.result()
