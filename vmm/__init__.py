"""The monitor: everything of the machine that is no device."""
