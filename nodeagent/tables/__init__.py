"""Merged state, one kind a file: plain data with one owner, no I/O, no clock.

A table takes a change and answers with the map entries that differ because of it; it never walks itself to find out.
"""
