"""The benchmark of one device: no network, no files but its page and its figures, a bounded time."""
