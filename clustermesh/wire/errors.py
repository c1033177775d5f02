"""The one error of the wire format."""


class RecordError(ValueError):
    """A key or value that does not follow the format; the text says what is wrong with it."""
