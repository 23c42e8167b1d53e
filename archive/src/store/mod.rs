//! One bucket prefix: conditional writes, their ambiguous outcomes, retries, metering, the probe.
