"""The only training loop, and the records it keeps."""
