"""Commands that the `external` adapter can run."""
