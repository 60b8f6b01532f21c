"""Tests of a study's page."""
