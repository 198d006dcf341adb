"""Pictures that users send. Their bytes are parsed in a child process, never in the gateway and never in a model's worker."""
