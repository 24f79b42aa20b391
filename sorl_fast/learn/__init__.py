"""Learning: networks, losses, the update and its loop."""
