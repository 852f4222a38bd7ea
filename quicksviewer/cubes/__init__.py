"""Cuts of many methods side by side: as a picture, as numbers, and in a study."""
