"""Three ways to teach Qwen2.5-VL to find forged pictures (seed 001), over shared parts.

modular         LoRA in the vision tower, a classification head and a heat-map head on it
lm_supervised   LoRA in the tower and the merger, taught by the language model's own answer
hybrid          LoRA in tower, merger and language model; what the heads see is told to it as extra tokens
"""
