"""Ray: connecting, submitting, ingest and distributed training."""
