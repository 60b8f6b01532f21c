"""Typed records of the run directory's files; the manifest and the version of all of them are in `harness.rundir.schema`."""
