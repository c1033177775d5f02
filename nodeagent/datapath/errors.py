"""What can go wrong between the agent and the kernel."""


class DatapathError(Exception):
    """Something the datapath needs is missing or was refused; the message names it and the remedy."""
