"""Math reasoning tasks: GSM8K and the tiny suite's arithmetic."""
