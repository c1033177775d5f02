"""What all processes of the mesh share, and the operator's command."""

__version__ = "0.1.0"
