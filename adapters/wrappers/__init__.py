"""Wrappers: methods against forgetting that compose with a trainer."""
