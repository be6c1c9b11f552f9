"""The threads flavour: waiting blocks the calling thread."""
