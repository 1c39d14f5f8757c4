"""Choosing thresholds and exits from measured outputs."""
