"""What holds for all tests."""

import signal

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# How long an example takes says nothing on a machine that runs other tests beside it.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


# A shell has its background jobs ignore SIGINT, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Scheduling(LoadScopeScheduling):
    """System tests one after the other in one process: they share the machine's names. All others as they come."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/system" if nodeid.startswith("tests/system/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)
