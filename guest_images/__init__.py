"""Bare-metal guests: source, listing and built image of each."""
