"""Output on a terminal: tables that fit its width, and text that cannot control it."""
