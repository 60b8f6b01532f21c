"""Wrappers: methods against forgetting that change the stage of another trainer, which they name."""
