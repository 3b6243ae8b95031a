"""Told once, told surely: what happened to people, over whatever connection they have."""
