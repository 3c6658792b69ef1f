"""Pilot Protocol node on Trio."""
