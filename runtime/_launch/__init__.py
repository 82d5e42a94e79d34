"""From a checked call to what the driver is given."""
