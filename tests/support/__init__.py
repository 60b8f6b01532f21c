"""What tests share: small models, stages, run directories."""
