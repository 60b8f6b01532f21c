"""Tests of what machines share: a store of stages and snapshots, and the lease of a run."""
