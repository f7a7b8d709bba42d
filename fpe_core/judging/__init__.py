"""From scores to decisions: rules, their calibration, retries, verdicts on regions."""
