"""Device models: one device, one file."""
