"""Statistics of a run: what every layer skipped in every step, collected without waiting for the device."""
