"""What runs need, before they start: memory, time and disk on this machine, by formula and by a short real run."""
