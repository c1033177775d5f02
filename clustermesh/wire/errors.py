"""Errors of the wire format."""


class RecordError(ValueError):
    """A key or value that does not follow the format; the text says what is wrong with it."""


class LabelPatternError(ValueError):
    """A pattern of identity-relevant labels that cannot be used."""
