"""How `generate` is asked for the likeliest answer, whatever a checkpoint's generation_config says."""

GREEDY = dict(
    do_sample=False,
    num_beams=1,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    temperature=None,
    top_p=None,
    top_k=None,
)
"""Every one is said, so that no checkpoint's defaults creep in."""
