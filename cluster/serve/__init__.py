"""What is reached over HTTP: the reward service."""
