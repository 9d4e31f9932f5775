"""Configurations: `default.py` has every field, the others override what differs."""
