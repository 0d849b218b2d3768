"""What a sample is, and which samples an optimizer step holds."""
