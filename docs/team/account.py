"""Create an account on the MLflow server, or give one a new password: python3 account.py NAME.

From the environment: MLFLOW_TRACKING_URI, the administrator's MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD, and NEW_PASSWORD of at least 12 characters. Needs Python alone.
"""

import base64
import json
import os
import sys
import urllib.error
import urllib.request

ADMIN = ":".join(os.environ[f"MLFLOW_TRACKING_{part}"] for part in ("USERNAME", "PASSWORD"))
HEADERS = {
    "Authorization": "Basic " + base64.b64encode(ADMIN.encode()).decode(),
    "Content-Type": "application/json",
}


def call(method: str, name: str) -> str:
    """What the server objects to in a call of its accounts, or nothing."""
    body = {"username": sys.argv[1], "password": os.environ["NEW_PASSWORD"]}
    url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/{name}"
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers=HEADERS, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=60):
            return ""
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read().decode()[:300]}"
    except urllib.error.URLError as error:
        return f"{url}: {error.reason}"


objection = call("POST", "create")
if "RESOURCE_ALREADY_EXISTS" in objection:
    objection = call("PATCH", "update-password")
if objection:
    sys.exit(f"error: {objection}")
