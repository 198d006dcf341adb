"""What tests, benchmarks and the demo need to run Duet as its user does."""
