"""Tests of claims and their registration."""
