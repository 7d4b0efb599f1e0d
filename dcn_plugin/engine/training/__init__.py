"""Training that pays only for the neurons that exist."""
