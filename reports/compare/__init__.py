"""Methods next to a baseline: paired differences."""
