"""Python's cyclic garbage collector, set for a process that holds hundreds of thousands of records."""

import gc

# New containers between two collections, and collections of one generation between two of the next. Records make no
# cycles, so a collection finds little; by Python's own 700, 10, 10 it takes a tenth of the time of a large list.
_THRESHOLDS = (50_000, 20, 50)


def relax() -> None:
    """To be called once all modules are imported: these stay, so no collection looks at them again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
