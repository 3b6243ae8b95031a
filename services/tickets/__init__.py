"""Listings: what is on sale, from whom, and how much of it is left."""
