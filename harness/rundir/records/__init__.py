"""Typed records of the run directory's files; `harness.rundir.schema` has the manifest and the version of them all."""
