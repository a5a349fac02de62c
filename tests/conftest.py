"""What holds for all tests: where everything must run (FABRIC_CI=1), a skipped test is a failed one."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

# A shell's background jobs ignore these, and commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Reasons that stand even there: another test covers the machine or the functions, or the data is not everybody's.
ALLOWED = (
    "root may write everywhere",
    "the plain test runs NEON here",
    "../shared beside the checkout",
    "Flower is not installed",
    "tools of package managers: ",
)


def _strict(report: pytest.TestReport | pytest.CollectReport) -> None:
    told = str(report.longrepr)
    if report.skipped and os.environ.get("FABRIC_CI") and not any(reason in told for reason in ALLOWED):
        report.outcome = "failed"
        report.longrepr = f"skipped where everything must run: {told}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _strict(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _strict(report)
    return report
