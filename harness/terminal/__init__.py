"""What every command shows on a terminal: tables that fit its width, text that cannot control it."""
