"""What a store of runs costs that is away, slow or broken: seconds, and one line."""

import logging
import subprocess
import sys
import threading
import time

import pytest

from lesionseg.errors import TrackingError
from lesionseg.tracking import availability
from lesionseg.tracking.availability import Store, within


@pytest.fixture
def hung():
    """A function that does not return before the test has ended."""
    end = threading.Event()
    yield end.wait
    end.set()


class FaultError(Exception):
    def __init__(self, text, error_code="INTERNAL_ERROR"):
        super().__init__(text)
        self.error_code = error_code


def fail(error):
    raise error


def test_a_call_that_hangs_costs_its_deadline_and_is_not_made_again(hung, monkeypatch, caplog):
    monkeypatch.setattr(availability, "CALL_SECONDS", 0.1)
    store, calls = Store("the server"), []
    start = time.monotonic()
    for _ in range(3):
        with pytest.raises(TrackingError, match="the server is too slow") as caught:
            store.ask(lambda: (calls.append(1), hung()))
        store.warn(caught.value)
    assert time.monotonic() - start < 5
    assert len(calls) == 1
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_after_some_minutes_a_store_that_failed_is_asked_again(monkeypatch):
    monkeypatch.setattr(availability, "_RETRY_SECONDS", 0)
    store = Store("it")
    with pytest.raises(TrackingError):
        store.ask(lambda: fail(OSError("away")))
    assert store.ask(lambda: 3) == 3


def test_calls_that_are_slow_together_end_like_one_that_hangs(hung, monkeypatch):
    monkeypatch.setattr(availability, "_SHARE", 0)
    store, patient = Store("it"), Store("it")
    patient.is_patient = True
    store._spent = patient._spent = availability._ALL_SECONDS
    assert store._left() == 1
    assert patient.ask(lambda: within(2, lambda: time.sleep(1.1) or 4)) == 4
    with pytest.raises(TrackingError, match="no answer within 1 s"):
        store.ask(hung)


def test_what_is_wrong_with_one_run_does_not_give_up_the_others():
    store = Store("it")
    with pytest.raises(TrackingError, match="bad value"):
        store.ask(lambda: fail(FaultError("bad value", "INVALID_PARAMETER_VALUE")))
    assert store.ask(lambda: 3) == 3


def test_a_process_ends_though_a_call_hangs():
    code = (
        "import time\nfrom lesionseg.tracking.availability import within\n"
        "try: within(0.1, lambda: time.sleep(100))\nexcept TimeoutError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.startswith("no answer within")
    assert not done.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "API request to http://h:1/api/2.0 failed with exception HTTPConnectionPool(host='h', "
            "port=1): Max retries exceeded with url: /api (Caused by NewConnectionError('<urllib3 "
            "object at 0x7f>: Failed to establish a new connection: [Errno 111] Connection "
            "refused'))",
            r"^it does not answer \(Connection refused\). When it is there again run: lesionseg",
        ),
        (
            "API request to endpoint /api/2.0 failed with error code 401 != 200. Response body: "
            "'You are not authenticated. Please see the documentation'",
            "does not know this user and password. Set MLFLOW_TRACKING_USERNAME and",
        ),
        ("PERMISSION_DENIED: Permission denied", "Ask who runs it for the permission EDIT"),
        (
            "API request to endpoint /api failed with error code 403 != 200. Response body: "
            "'Invalid Host header - possible DNS rebinding attack detected'",
            "MLFLOW_SERVER_ALLOWED_HOSTS",
        ),
        ("failed with error code 404 != 200. Response body: '<html>\n...'", "no MLflow server"),
        ("(sqlite3.OperationalError) database is locked\n[SQL: SELECT 1]", "by another process"),
        ("(sqlite3.DatabaseError) database disk image is malformed\n[SQL", "Move it away, then"),
        ("(sqlite3.OperationalError) database or disk is full\n[SQL", "Make room, then run"),
        ("[Errno 13] Permission denied: '/there'", r"cannot be used \(\[Errno 13\].*/there"),
        ("", r"cannot be used \(FaultError\)"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_to_do(text, line):
    with pytest.raises(TrackingError, match=line) as caught:
        Store("it").ask(lambda: fail(FaultError(text)))
    assert len(str(caught.value).splitlines()) == 1
    assert "run: lesionseg replay" in str(caught.value)


def test_a_patient_store_warns_of_nothing(caplog):
    store = Store("it")
    store.is_patient = True
    with caplog.at_level(logging.DEBUG):
        store.warn(TrackingError("away"))
    assert not caplog.records
