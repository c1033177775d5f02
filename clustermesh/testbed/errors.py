"""What can go wrong with a testbed: one sentence that names the thing and the remedy."""


class TestbedError(Exception):
    """A testbed cannot do what was asked; the text is meant for the operator."""

    __test__ = False  # not a test class, whatever its name
