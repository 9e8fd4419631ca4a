"""Many sandboxes at once that break all the time: see ``scripts/soak``."""
