"""Looking before training: is the data usable, how large is it, what will a run need."""
