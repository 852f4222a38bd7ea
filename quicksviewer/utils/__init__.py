"""Small tools that the rest of the package stands on; nothing here imports another part of it."""
