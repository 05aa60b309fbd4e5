"""The monitor: everything of the machine that is no device."""

VERSION = "0.1.0"
