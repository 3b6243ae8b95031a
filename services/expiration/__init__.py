"""Expiration: holds what has a deadline, and tells when the time has come."""
