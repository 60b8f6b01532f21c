"""Many runs: sweeps on one machine or a Ray cluster, and studies."""
