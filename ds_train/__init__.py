"""Pre-pretraining and pretraining on DeepSpeed ZeRO with a layout-independent trajectory."""

import logging

from data_tools.base.version import VERSION

__version__ = VERSION

# Once for every process, at import; a run's summary names the device.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
