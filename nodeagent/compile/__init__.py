"""Pure functions from records to entries of kernel maps: no I/O, no clock, no logging."""
