"""What names a teacher in manifests, snapshots and caches of scores: a digest of its weights, and one of its configuration.

Versions before recorded the digest of the weights alone. Such a record still stands for every configuration of these weights.
"""

from __future__ import annotations

CONFIGURATION = "#config-"


def full_identity(weights: str, configuration: str) -> str:
    """Return the identity of a teacher with these digests of its weights and of what else decides its scores."""
    return f"{weights}{CONFIGURATION}{configuration}"


def weights_part(identity: str) -> str:
    """Return the part of an identity that versions before recorded; for a teacher without a configuration, all of it."""
    return identity.partition(CONFIGURATION)[0]


def same_teacher(one: str, other: str) -> bool:
    """Return whether two recorded identities name one teacher, as far as both say."""
    return one in (other, weights_part(other)) or other == weights_part(one)
