"""What plug-ins of serving engines share: settings, layers, thresholds, counts. No engine is imported here."""
