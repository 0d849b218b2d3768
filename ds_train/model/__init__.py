"""A Hugging Face causal LM for packed rows, its attention, and what it costs."""
