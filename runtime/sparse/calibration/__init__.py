"""From a model and texts to thresholds: what is tried, how it is fitted, which thresholds are chosen."""
