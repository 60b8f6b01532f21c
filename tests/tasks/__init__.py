"""Tests of the task files, their generators, loaders and graders."""
