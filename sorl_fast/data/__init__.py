"""Data: files or simulators in, minibatches out."""
