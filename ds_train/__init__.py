"""Pre-pretraining and pretraining on DeepSpeed ZeRO with a layout-independent trajectory."""

__version__ = "0.1.0"
