"""Stubs generated from the .proto files beside them (`make proto`)."""
