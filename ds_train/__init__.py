"""Pre-pretraining and pretraining on DeepSpeed ZeRO with a layout-independent trajectory."""

import logging

__version__ = "0.1.0"

# Once for every process, at import; a run's summary names the device.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
