"""One optimizer step: micro-batches, the stream that makes them, the loss, the engine."""
