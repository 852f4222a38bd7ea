"""The embedded default: a small world made on the spot, so that everything runs with nothing downloaded."""
