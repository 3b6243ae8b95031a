"""Bulk: operations collected, executed as one statement, isolated when one is bad."""
