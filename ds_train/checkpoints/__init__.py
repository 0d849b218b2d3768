"""The training state, and checkpoints: written, verified, chosen, resumed in any layout."""
