"""What differs between pre-pretraining and pretraining."""
