"""Machine types, which wire devices up; the registry; plug and unplug."""
