"""Shared by all tests: set before anything imports torch."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as in stages/__init__.py
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
